"""`mpt-serve audit`: whether audit logs are as they were written."""

from pathlib import Path
from typing import Annotated

import typer

from mpt_serve.access.audit_log import AuditError, check_audit_file
from mpt_serve.commands.failure import CommandError

__all__ = ["audit"]


def audit(files: Annotated[list[Path], typer.Argument(metavar="FILE", help="audit logs")]) -> None:
    """Check that no line of an audit log was changed, removed or inserted."""
    try:
        for file in files:
            print(f"{file}: {check_audit_file(file)} records, unbroken")
    except (AuditError, OSError) as error:
        raise CommandError(str(error)) from error
