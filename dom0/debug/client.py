"""Asks running machines."""

import socket
from typing import Final

from pydantic import ValidationError

from dom0.debug.audit import MachineAudit
from dom0.debug.places import socket_of
from dom0.debug.server import AUDIT

ANSWER_BYTES: Final = 64 << 20
_PART: Final = 1 << 16


class NoAnswer(Exception):
    """Process `pid` runs no machine, or does not answer as one."""

    def __init__(self, pid: int, why: str) -> None:
        super().__init__(f"process {pid} runs no machine that answers: {why}")
        self.pid = pid


def ask_for_audit(pid: int) -> MachineAudit:
    """Let the machine of process `pid` count everything again. NoAnswer."""
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(socket_of(pid)))
            stream.sendall(AUDIT)
            while part := stream.recv(_PART):
                answer += part
                if len(answer) > ANSWER_BYTES:
                    raise NoAnswer(pid, f"it says more than {ANSWER_BYTES} bytes")
        return MachineAudit.model_validate_json(bytes(answer))
    except (OSError, ValidationError) as error:
        raise NoAnswer(pid, str(error).partition("\n")[0]) from error
