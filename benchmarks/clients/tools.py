"""Python clients that call tools, unmodified, against a running server: instructor, LangChain, LlamaIndex.

    python -m venv /tmp/clients
    /tmp/clients/bin/pip install instructor langchain-openai llama-index-llms-openai-like
    /tmp/clients/bin/python benchmarks/clients/tools.py http://127.0.0.1:8000/v1

Prints a line for each use, and exits with 1 if one fails. What the model chooses does not matter: a random one passes.
"""

import sys
import traceback
from collections.abc import Callable
from typing import Literal

import instructor
import openai
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

QUESTION = "Anna is five years old and likes red."


class Person(BaseModel):
    """A person that the text mentions."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=130)
    color: Literal["red", "blue", "green"]


def instructor_tools(url: str, model: str) -> None:
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="none"), mode=instructor.Mode.TOOLS)
    request = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_retries": 0}
    assert isinstance(client.chat.completions.create(response_model=Person, **request), Person)
    assert [type(part) for part in client.chat.completions.create_partial(response_model=Person, **request)]


def langchain_bind_tools(url: str, model: str) -> None:
    @tool
    def note(text: Literal["yes", "no", "maybe"]) -> str:
        """Write a text down."""
        return f"noted: {text}"

    chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_retries=0, max_tokens=200)
    messages: list[BaseMessage] = [HumanMessage(QUESTION)]
    reply = chat.bind_tools([note], tool_choice="any", parallel_tool_calls=False).invoke(messages)
    assert isinstance(reply, AIMessage)
    assert len(reply.tool_calls) == 1
    assert reply.invalid_tool_calls == []
    messages += [reply, ToolMessage(note.invoke(reply.tool_calls[0]["args"]), tool_call_id=reply.tool_calls[0]["id"])]
    assert isinstance(chat.bind_tools([note]).invoke(messages), AIMessage)
    merged = None
    for chunk in chat.bind_tools([note], tool_choice="note").stream([HumanMessage(QUESTION)]):
        merged = chunk if merged is None else merged + chunk
    assert [call["name"] for call in merged.tool_calls] == ["note"]


def langchain_structured_output(url: str, model: str) -> None:
    chat = ChatOpenAI(base_url=url, api_key="none", model=model, max_retries=0)
    assert isinstance(chat.with_structured_output(Person, method="function_calling").invoke(QUESTION), Person)


def llama_index_structured_predict(url: str, model: str) -> None:
    llm = OpenAILike(
        model=model, api_base=url, api_key="none", is_chat_model=True, is_function_calling_model=True, max_retries=0
    )
    assert isinstance(llm.structured_predict(Person, PromptTemplate("Who is it? {text}"), text=QUESTION), Person)


def main() -> int:
    url = sys.argv[1]
    model = openai.OpenAI(base_url=url, api_key="none").models.list().data[0].id
    uses: list[Callable[[str, str], None]] = [
        instructor_tools,
        langchain_bind_tools,
        langchain_structured_output,
        llama_index_structured_predict,
    ]
    failed = 0
    for use in uses:
        try:
            use(url, model)
            print(f"{use.__name__}: ok", flush=True)
        except Exception:
            failed += 1
            print(f"{use.__name__}: failed\n{traceback.format_exc(limit=-4)}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
