"""The list of hypercalls and of their operations."""

import pytest

from hypervisor.abi import domctl, grant_table, memory, sysctl, xen
from hypervisor.abi.operations import HYPERCALLS, OPERATIONS


def test_hypercalls_have_the_names_of_the_header() -> None:
    assert HYPERCALLS[xen.HYPERVISOR_memory_op] == "memory_op"
    assert HYPERCALLS[xen.HYPERVISOR_grant_table_op] == "grant_table_op"
    assert len(HYPERCALLS) == 50


def test_every_list_of_operations_belongs_to_a_hypercall() -> None:
    assert OPERATIONS.keys() <= set(HYPERCALLS.values())


@pytest.mark.parametrize(
    ("hypercall", "number", "name"),
    [
        ("memory_op", memory.XENMEM_add_to_physmap, "add_to_physmap"),
        ("grant_table_op", grant_table.GNTTABOP_map_grant_ref, "map_grant_ref"),
        ("domctl", domctl.XEN_DOMCTL_createdomain, "createdomain"),
        ("sysctl", sysctl.XEN_SYSCTL_getdomaininfolist, "getdomaininfolist"),
    ],
)
def test_operations_have_the_names_of_the_header(hypercall: str, number: int, name: str) -> None:
    assert OPERATIONS[hypercall][number] == name


@pytest.mark.parametrize(
    ("hypercall", "count"),
    [("memory_op", 28), ("domctl", 74), ("sysctl", 26), ("hvm_op", 12), ("vcpu_op", 14)],
)
def test_arguments_of_operations_are_not_listed_as_operations(hypercall: str, count: int) -> None:
    assert len(OPERATIONS[hypercall]) == count
