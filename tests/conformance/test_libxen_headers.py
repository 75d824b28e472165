"""What we declare of Xen's ABI is what Xen 4.17's public headers say, by the word of a C compiler."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from ringbuffers import slots
from ringbuffers.protocols import blkif, xs_wire
from tests.conformance.c_probe import Headers, HeadersDiffer, require_headers
from tests.conformance.declarations import (
    Claim,
    abi_constants,
    abi_structs,
    anonymous_in,
    protocol_constants,
    protocol_struct_claims,
    protocol_structs,
    struct_claims,
)

COMPLETE = {
    "xen.h": "__HYPERVISOR_|VIRQ_|NR_VIRQS|DOMID_|CONSOLEIO_|VMASST_|MMU_|MMUEXT_|UVMF_|SIF_",
    "event_channel.h": "EVTCHN",
    "grant_table.h": "GNTTAB|GNTST_|GTF_|GNTMAP_|GNTCOPY_",
    "memory.h": "XENMEM|XENMAPSPACE_",
    "sched.h": "SCHEDOP_|SHUTDOWN_",
    "vcpu.h": "VCPUOP_|RUNSTATE_",
    "version.h": "XENVER_|XEN_.*_LEN$",
    "features.h": "XENFEAT_",
    "elfnote.h": "XEN_ELFNOTE_(?!CRASH|DUMPCORE)",
    "physdev.h": "PHYSDEVOP_",
    "callback.h": "CALLBACKOP_|CALLBACKTYPE_",
    "nmi.h": "XEN_NMIREASON_|XENNMI_",
    "domctl.h": "XEN_DOMCTL_([a-z]|CDF_|PFINFO_)|XEN_DOMINF_",
    "sysctl.h": "XEN_SYSCTL_([a-z]|PHYSCAP_)",
    "hvm/params.h": "HVM_PARAM_|HVM_NR_",
    "hvm/hvm_op.h": "HVMOP_",
    "arch-x86/hvm/start_info.h": "XEN_HVM_",
    "io/blkif.h": "BLKIF_|VDISK_",
    "io/xs_wire.h": "XENSTORE_",
}
"""By header: the names (regular expressions) of which we declare every constant that the header has."""

HEADERS = [*COMPLETE, "errno.h", "io/console.h"]
OMITTED = re.compile(
    "XEN_SYSCTL_(cpu_policy|cpu_featureset|pm_op)_"  # arguments of operations, not operations
    "|XEN_DOMCTL_vmtrace_(?!op)"
    "|__HYPERVISOR_VIRT_"  # declared without the underscores
    "|GNTTABOP_error_msgs"
)
HYPERVISOR_ONLY = {"XEN_EINTR", "XEN_ERESTART", "EVTCHNOP_reset_cont"}
"""Numbers that the headers show to the hypervisor alone."""


def disagreements(headers: Headers, claims: Iterable[Claim], directory: Path) -> list[str]:
    """One line for each claim that the headers do not bear out."""
    made = list(claims)
    values = headers.evaluate([claim.expression for claim in made], directory)
    return [
        f"{claim.kind} {claim.about}: ours is {claim.ours:#x}, Xen's is {value:#x}"
        for claim, value in zip(made, values, strict=True)
        if value != claim.ours
    ]


def constant_claims(constants: dict[str, int]) -> list[Claim]:
    return [Claim("constant", name, name, value) for name, value in constants.items()]


def test_every_struct_and_constant_is_what_the_headers_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_headers()
    layouts = abi_structs()
    constants = abi_constants() | protocol_constants()
    claims = [claim for layout in layouts.values() if not layout.anonymous for claim in struct_claims(layout)]
    claims += [claim for layout in protocol_structs().values() for claim in protocol_struct_claims(layout)]
    public = {name: value for name, value in constants.items() if name not in HYPERVISOR_ONLY}
    wrong = disagreements(Headers(HEADERS), claims + constant_claims(public), tmp_path)
    private = {name: value for name, value in constants.items() if name in HYPERVISOR_ONLY}
    internal = Headers(["errno.h", "event_channel.h"], defines=["__XEN__"])
    wrong += disagreements(internal, constant_claims(private), tmp_path)
    assert not wrong, "\n".join(wrong)
    counts = Counter(claim.kind for claim in claims)
    with capsys.disabled():
        print(
            f"\ncompared with Xen 4.17's headers: {len(layouts) + len(protocol_structs())} structs, "
            f"{counts['field']} fields, {len(constants)} constants"
        )


def test_every_struct_without_a_tag_is_reached_through_its_parent() -> None:
    layouts = abi_structs()
    reached = {name for layout in layouts.values() if not layout.anonymous for name in anonymous_in(layout)}
    assert reached == {layout.name for layout in layouts.values() if layout.anonymous}


@pytest.mark.parametrize("header", COMPLETE)
def test_no_number_of_a_header_is_missing(header: str) -> None:
    require_headers()
    macros = Headers(HEADERS).macros()
    ours = abi_constants() | protocol_constants()
    theirs = {name for name in macros if re.match(COMPLETE[header], name) and not OMITTED.match(name)}
    assert theirs
    assert sorted(theirs - ours.keys()) == []


@pytest.mark.parametrize("tag", ["xen_errno", "xsd_sockmsg_type", "xs_watch_type"])
def test_no_name_of_an_enum_is_missing(tag: str) -> None:
    require_headers()
    theirs = Headers(HEADERS).enumerators(tag)
    assert theirs
    assert sorted(theirs - (abi_constants() | protocol_constants()).keys()) == []


def test_the_errors_of_xenstore_are_those_of_xs_wire_h_in_its_order(tmp_path: Path) -> None:
    require_headers()
    count = "sizeof(xsd_errors) / sizeof(xsd_errors[0])"
    claims = [Claim("count", "xsd_errors", count, len(xs_wire.XSD_ERRORS))]
    for index, (name, number) in enumerate(xs_wire.XSD_ERRORS.items()):
        claims.append(Claim("number", name, f"xsd_errors[{index}].errnum", number))
        claims.append(Claim("name", name, f'__builtin_strcmp(xsd_errors[{index}].errstring, "{name}")', 0))
    assert disagreements(Headers(["io/xs_wire.h"]), claims, tmp_path) == []


def test_the_words_of_xs_wire_h() -> None:
    require_headers()
    macros = Headers(["io/xs_wire.h"]).macros()
    theirs = {name: text.strip('"') for name, text in macros.items() if name.startswith("XS_WRITE_")}
    assert theirs == {name: value for name, value in vars(xs_wire).items() if name in theirs}


def test_the_shared_ring_is_that_of_ring_h(tmp_path: Path) -> None:
    require_headers()
    claims = [
        Claim("size", "sring", "offsetof(struct blkif_sring, ring)", 64),
        Claim("size", "slot", "sizeof(union blkif_sring_entry)", blkif.REQUEST_SLOT_SIZE),
        Claim("field", "req_prod", "offsetof(struct blkif_sring, req_prod)", slots.REQ_PROD * 4),
        Claim("field", "req_event", "offsetof(struct blkif_sring, req_event)", slots.REQ_EVENT * 4),
        Claim("field", "rsp_prod", "offsetof(struct blkif_sring, rsp_prod)", slots.RSP_PROD * 4),
        Claim("field", "rsp_event", "offsetof(struct blkif_sring, rsp_event)", slots.RSP_EVENT * 4),
    ]
    for pages in range(1, 17):
        ring = slots.SlotMemory([memoryview(bytearray(4096)) for _ in range(pages)], blkif.REQUEST_SLOT_SIZE)
        expression = f"__CONST_RING_SIZE(blkif, {pages}u * 4096u)"
        claims.append(Claim("ring", f"slots in {pages} pages", expression, ring.size))
    assert disagreements(Headers(["xen.h", "io/blkif.h"]), claims, tmp_path) == []


def test_a_wrong_claim_is_named(tmp_path: Path) -> None:
    require_headers()
    claims = [
        Claim("constant", "DOMID_SELF", "DOMID_SELF", 1),
        Claim("field", "evtchn_send.port", "offsetof(struct evtchn_send, port)", 0),
    ]
    found = disagreements(Headers(["event_channel.h"]), claims, tmp_path)
    assert found == ["constant DOMID_SELF: ours is 0x1, Xen's is 0x7ff0"]


def test_a_name_that_xen_does_not_have_is_reported(tmp_path: Path) -> None:
    require_headers()
    claims = [Claim("constant", "VIRQ_OURS", "VIRQ_OURS", 99)]
    with pytest.raises(HeadersDiffer, match="VIRQ_OURS"):
        disagreements(Headers(["xen.h"]), claims, tmp_path)
