"""How a command ends that could not do its work."""

from mpt_serve.errors import MptServeError

__all__ = ["CommandError"]


class CommandError(MptServeError):
    """What went wrong, for the user: printed without a traceback. status: of the process, 2 for wrong arguments."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status
