"""Names of numbers."""

from types import ModuleType

from hypervisor.abi.errno import ERRNO_NAMES, XEN_EAGAIN, XEN_EDEADLK, XEN_ENOSYS
from hypervisor.abi.names import names, numbers


def test_numbers_are_picked_by_prefix() -> None:
    module = ModuleType("module")
    vars(module).update(OP_read=0, OP_write=1, OP_SIZE=7, OP_text="x", OTHER=2)
    assert numbers(module, "OP_") == {"OP_read": 0, "OP_write": 1, "OP_SIZE": 7}
    assert numbers(module, "OP_", but="[A-Z]") == {"OP_read": 0, "OP_write": 1}


def test_the_first_name_of_a_number_wins() -> None:
    module = ModuleType("module")
    vars(module).update(OP_first=1, OP_second=1)
    assert names(module, "OP_") == {1: "first"}


def test_errno_names() -> None:
    assert ERRNO_NAMES[XEN_ENOSYS] == "ENOSYS"
    assert ERRNO_NAMES[XEN_EAGAIN] == "EAGAIN"
    assert ERRNO_NAMES[XEN_EDEADLK] == "EDEADLK"
