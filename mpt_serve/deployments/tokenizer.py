"""The Tokenizer deployment: text and conversations to ids."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mpt_serve.configuration.model_folder import tokenizer_folder
from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.encode_link import encode_links
from mpt_serve.deployments.encoding_lanes import EncodingLanes
from mpt_serve.deployments.grpc_address import listen_on_the_nodes_address
from mpt_serve.deployments.heartbeat import start_heartbeat
from mpt_serve.deployments.link_wire import LinkAddress
from mpt_serve.deployments.logs import log_through_serve
from mpt_serve.deployments.replica_updates import ReplicaUpdates
from mpt_serve.deployments.replicas import own_names
from mpt_serve.deployments.takeover import Takeover
from mpt_serve.deployments.tracing import Carrier, traced, tracing_from_environment
from mpt_serve.deployments.version import Version
from mpt_serve.deployments.watchdog import ReplicaReport
from mpt_serve.text.chat_prompt import ChatEncoder
from mpt_serve.text.chat_template import ChatTemplate, Message, MissingChatTemplateError
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["Tokenizer"]


class Tokenizer:
    """Runs the tokenizer and the chat template outside of the event loop; see `EncodingLanes`."""

    def __init__(self, settings: Settings) -> None:
        log_through_serve()
        listen_on_the_nodes_address()
        self._version = Version.of(settings)
        self._actor = own_names()[1]
        self._tracing = tracing_from_environment()
        self._links = encode_links(self._run)
        start_heartbeat(self._links.beat)
        self._takeover: Takeover | None = Takeover(
            "Tokenizer", ["Generator"], self._version, ReplicaUpdates(["Tokenizer", "Generator"])
        )
        folder = tokenizer_folder(settings.model)
        self._tokenizer = TextTokenizer.from_folder(folder)
        self._lanes = EncodingLanes(self._tokenizer)
        self._missing: str | None = None
        source = ""
        try:
            template = ChatTemplate.from_folder(folder, settings.chat_template, self._tokenizer)
            self._chat = ChatEncoder(template, self._tokenizer, settings.chat_special_tokens)
            source = template.source
        except MissingChatTemplateError as error:
            self._missing = str(error)
        self._control = self._tokenizer.control_tokens(source)
        plain = TextTokenizer(self._control.renamed, encoder=self._control.encoder)  # control tokens are text to it
        self._plain_lanes = EncodingLanes(plain)

    def record_replica_metadata(self) -> dict[str, str]:
        """Return what Serve tells other replicas about this one."""
        return self._version.metadata()

    async def check_health(self) -> None:
        """Wait, in Serve's first call, until this replica may take over from those of other settings."""
        if self._takeover is not None:
            await self._takeover.wait()
            self._takeover = None

    async def report(self, address: LinkAddress | None = None) -> ReplicaReport:
        """Return a report of this replica, whose requests have no ids.

        address: of the Ingress that asks; a link to it is opened.
        """
        link = None if address is None else self._links.to_if_open(address)
        return ReplicaReport(self._actor, (), "", None if link is None else link.id, takes_texts=True)

    async def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        parse_special_tokens: bool = True,
        carrier: Carrier | None = None,
    ) -> Sequence[int]:
        """Return the text's ids; see `TextTokenizer.encode`. Raises RequestError, BusyError.

        carrier: of the request's trace; None where it is not traced.
        """
        with traced(self._tracing, "tokenize", carrier, **{"mpt_serve.characters": len(text)}):
            if parse_special_tokens:
                return await self._lanes.encode(text, add_special_tokens)
            return self._control.original_ids(await self._plain_lanes.encode(text, add_special_tokens))

    async def _run(self, method: str, arguments: Sequence[Any]) -> Sequence[int]:
        """Return the result of a call that came over a link."""
        return await (self.encode if method == "encode" else self.encode_chat)(*arguments)

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        add_special_tokens: bool = False,
        carrier: Carrier | None = None,
    ) -> Sequence[int]:
        """Return the ids of the conversation, rendered by the model's chat template. Raises ChatTemplateError.

        add_special_tokens: the tokenizer adds its own to those that the template writes. carrier: as of `encode`.
        """
        if self._missing is not None:
            raise MissingChatTemplateError(self._missing)
        render = self._chat.render
        with traced(self._tracing, "tokenize chat", carrier, **{"mpt_serve.messages": len(messages)}):
            prompt = await asyncio.to_thread(render, messages, add_generation_prompt, continue_final_message, tools)
            return await self.encode(prompt, add_special_tokens, parse_special_tokens=not self._chat.renames)
