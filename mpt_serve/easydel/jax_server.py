"""`JAXServer`: EasyDeL's calls, served by the three deployments of this package."""

import logging
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax

from model import FlaxMptForCausalLM, MptConfig
from mpt_serve.easydel.completions import stream_completion
from mpt_serve.easydel.model_folder import CONFIGURATION, bare_params, peak_memory, write_model_folder
from mpt_serve.easydel.rest import ChatRequest, InstructRequest, RestThread, rest_app
from mpt_serve.easydel.server_config import JAXServerConfig, JAXServerError
from mpt_serve.easydel.server_process import ServerProcess

__all__ = ["JAXServer"]

logger = logging.getLogger(__name__)

History = Sequence[Sequence[str]]  # pairs of what was said and what came back


class JAXServer:
    """A model in this process' memory, served over HTTP; `load_from_params` makes one.

    A subclass overrides `format_chat` and `format_instruct` to write prompts of another form.
    """

    def __init__(self, config: JAXServerConfig | Mapping[str, Any] | None = None) -> None:
        self.config = JAXServerConfig.of(config)
        self.number_of_served_request_until_last_up_time = 0
        self._verbose = True
        self._folder: Path | None = None
        self._process: ServerProcess | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    @classmethod
    def load_from_params(
        cls,
        model: FlaxMptForCausalLM,
        config_model: MptConfig,
        tokenizer: Any,
        params: Any,
        config: JAXServerConfig | Mapping[str, Any] | None = None,
        add_params_field: bool = True,
        do_memory_log: bool = False,
        verbose: bool = True,
    ) -> Self:
        """Write the model to a temporary folder, and return a server for it that `fire` starts.

        model: over `config_model`; its dtype is the server's unless config names one.
        tokenizer: of transformers, with the chat template of the page at / and of POST /chat.
        params: what `mpt_from_pretrained` returns. They may be deleted afterwards.
        add_params_field: False says that params are {"params": what mpt_from_pretrained returns}.
        do_memory_log: log the most memory of this process before and after.
        verbose: print the server's output.
        Raises JAXServerError for what cannot be served so.
        """
        server = cls(config)
        server._verbose = verbose
        server.config.log_ignored()
        weights = bare_params(params, add_params_field)
        if do_memory_log:
            print(f"Peak memory before the weights are written: {peak_memory()}")
        format_chat = server._format_chat_without_none if server._overrides("format_chat") else None
        server._folder = write_model_folder(weights, config_model, model, tokenizer, server.config, format_chat)
        server._end = weakref.finalize(server, shutil.rmtree, server._folder, ignore_errors=True)
        if do_memory_log:
            print(f"Peak memory after the weights are written: {peak_memory()}")
        return server

    # What subclasses override.

    @staticmethod
    def format_chat(history: History, prompt: str, system: str | None) -> str:
        """Return the prompt of a conversation; without an override, the server uses the tokenizer's chat template."""
        raise NotImplementedError("format_chat is for subclasses")

    @staticmethod
    def format_instruct(system: str | None, instruction: str) -> str:
        """Return the prompt of an instruction; without an override, it is a conversation of one message."""
        raise NotImplementedError("format_instruct is for subclasses")

    def _overrides(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(JAXServer, name)

    def _format_chat_without_none(self, history: list[list[str]], prompt: str, system: str) -> str:
        return self.format_chat(history=history, prompt=prompt, system=system)

    # Start and end.

    @property
    def rest_url(self) -> str:
        """The address of POST /chat, POST /instruct and GET /status."""
        return f"http://{self._reachable_host}:{self.config.port}"

    @property
    def api_url(self) -> str:
        """The address of the page at / and, below /v1, of the API of OpenAI."""
        return f"http://{self._reachable_host}:{self.config.api_port}"

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.config.host == "0.0.0.0" else self.config.host

    def fire(self) -> None:
        """Start the three deployments and EasyDeL's endpoints, and return at once; `wait_ready` waits for the model.

        They end with `end`, or when this process does. Raises JAXServerError if they run, or without a model.
        """
        if self._process is not None:
            raise JAXServerError("the server runs already; call end() first")
        if self._folder is None or not self._folder.exists():
            raise JAXServerError("there is no model: load one with load_from_params; end() has removed an earlier one")
        rest = RestThread(rest_app(_WeakResponder(self)), self.config.host, self.config.port)
        try:
            process = ServerProcess(self._folder / CONFIGURATION, self.api_url, self.config.platform, self._verbose)
        except BaseException:
            rest.stop()
            raise
        self._process = process
        if self._end is not None:
            self._end.detach()  # the folder now goes after the processes
        self._end = weakref.finalize(self, _end, rest, process, self._folder)

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until the server takes requests. Raises JAXServerError if it ends first, with its last output."""
        self._started().wait_ready(timeout_s)

    def launch(self, share_chat: bool = False, share_inst: bool = False) -> dict[str, str]:
        """Return the addresses of the pages, as {"chat": ..., "inst": ...}, when they can be used.

        They are of this machine whatever `share_chat` and `share_inst` say: nothing is published on other servers.
        """
        for name, share in (("share_chat", share_chat), ("share_inst", share_inst)):
            if share:
                logger.warning(
                    "%s=True makes no public link: EasyDeL's went through a server of Gradio's, where everybody with"
                    " the link can read and use it. For other machines pass config={'host': '0.0.0.0'}, or forward"
                    " port %d by ssh",
                    name,
                    self.config.api_port,
                )
        if self._process is None:
            self.fire()
        self.wait_ready()
        return {"chat": f"{self.api_url}/#chat", "inst": f"{self.api_url}/#instruct"}

    def end(self) -> None:
        """Let the requests that run finish, end the server, and remove the temporary folder."""
        if self._process is None:
            logger.warning("end: the server does not run")
        if self._end is not None:
            self._end()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _started(self) -> ServerProcess:
        if self._process is None:
            raise JAXServerError("the server does not run; call fire() first")
        return self._process

    # Requests.

    def process(
        self,
        string: str,
        *,
        greedy: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Iterator[tuple[str, int]]:
        """Yield the completion of a prompt so far and its number of tokens, after each `max_stream_tokens` of them.

        Of a prompt longer than `max_length - max_stream_tokens` the last tokens are used.
        Raises ServerRequestError for what the server refuses.
        """
        return self._complete({"prompt": string}, greedy, max_new_tokens, temperature)

    def _complete(
        self, prompt: Mapping[str, Any], greedy: bool, max_new_tokens: int | None, temperature: float | None
    ) -> Iterator[tuple[str, int]]:
        config = self.config
        sampling = {
            "temperature": 0 if greedy else config.temperature if temperature is None else temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
        }
        longest = max((config.max_length or 2**31) - config.max_stream_tokens, 1)
        wanted = max_new_tokens or config.max_new_tokens
        self._started()
        text, count, yielded = "", 0, 0
        for text, count in stream_completion(self.api_url, {**prompt, **sampling}, wanted, longest):
            if count >= yielded + config.max_stream_tokens:
                yield text, count
                yielded = count
        if count != yielded or not count:
            yield text, count

    def forward_chat(self, data: ChatRequest) -> dict[str, Any]:
        """Return the response of POST /chat."""
        history = [list(pair) for pair in data.history or ()]
        if self._overrides("format_chat"):
            prompt: Any = self.format_chat(history=history, prompt=data.prompt, system=None)
        else:
            turns = [(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]
            prompt = [{"role": role, "content": text} for role, text in [*turns, ("user", data.prompt)]]
        return self._respond(prompt, data)

    def forward_instruct(self, data: InstructRequest) -> dict[str, Any]:
        """Return the response of POST /instruct."""
        if self._overrides("format_instruct"):
            prompt: Any = self.format_instruct(system=data.system, instruction=data.prompt)
        else:
            messages = [("system", data.system), ("user", data.prompt)]
            prompt = [{"role": role, "content": text} for role, text in messages if text]
        return self._respond(prompt, data)

    def _respond(self, prompt: Any, data: ChatRequest | InstructRequest) -> dict[str, Any]:
        request = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
        *_, (text, count) = self._complete(request, data.greedy, None, data.temperature)
        self.number_of_served_request_until_last_up_time += 1
        return {"input": prompt, "response": text, "tokens_used": count}

    def forward_chat_non_api(self, prompt: str, history: History | None, greedy: bool) -> dict[str, Any]:
        """Return what POST /chat returns."""
        pairs = [(said, replied) for said, replied in history or ()]
        return self.forward_chat(ChatRequest(prompt=prompt, history=pairs, greedy=greedy))

    def forward_instruct_non_api(self, prompt: str, system: str | None, greedy: bool) -> dict[str, Any]:
        """Return what POST /instruct returns."""
        return self.forward_instruct(InstructRequest(prompt=prompt, system=system, greedy=greedy))

    def status(self) -> dict[str, Any]:
        """Return what GET /status returns. Raises JAXServerError when the server has ended by itself."""
        ready = self._process is not None and self._process.ready
        return {
            "config": {name: getattr(self.config, name) for name in ("max_length", "max_new_tokens", "dtype")},
            "devices": str(jax.devices()),
            "number_of_backends": len(jax.devices()),
            "status": "Ready" if ready else "Starting" if self._process is not None else "Ended",
            "number_of_served_request_until_last_up_time": str(self.number_of_served_request_until_last_up_time),
            "memory": self.get_memory(),
        }

    @staticmethod
    def get_memory() -> str:
        """Return the most memory that this process has used so far."""
        return peak_memory()


class _WeakResponder:
    """A server's responses without keeping it alive, so that one that is forgotten ends."""

    def __init__(self, server: JAXServer) -> None:
        self._server = weakref.ref(server)

    def _live(self) -> JAXServer:
        server = self._server()
        if server is None:
            raise JAXServerError("the server has ended")
        return server

    def forward_chat(self, data: ChatRequest) -> dict[str, Any]:
        return self._live().forward_chat(data)

    def forward_instruct(self, data: InstructRequest) -> dict[str, Any]:
        return self._live().forward_instruct(data)

    def status(self) -> dict[str, Any]:
        return self._live().status()


def _end(rest: RestThread, process: ServerProcess, folder: Path) -> None:
    rest.stop()
    process.stop()
    shutil.rmtree(folder, ignore_errors=True)
