"""`mpt-serve audit`: whether audit logs are as they were written."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpt_serve.access.audit_log import AuditError, check_audit_file
from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.options import AsJson

__all__ = ["audit"]


def audit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="audit logs")], as_json: AsJson = False
) -> None:
    """Check that no line of an audit log was changed, removed or inserted.

    Prints the SHA-256 of the last line, too: by it, lines that were cut off later show, and changes of the last one.
    """
    try:
        checked = {str(file): check_audit_file(file) for file in files}
    except (AuditError, OSError) as error:
        raise CommandError(str(error)) from error
    if as_json:
        print(json.dumps([{"file": file, **asdict(found)} for file, found in checked.items()], indent=2))
        return
    for file, found in checked.items():
        print(f"{file}: {found.records} records, unbroken; last {found.digest}")
