"""The kernels compile for a GPU that is not there: what the interpreter does not check."""

import re

import pytest

pytest.importorskip("triton", minversion="3.8", reason="pip install triton")

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from balanced_grad.kernels._triton import _combine, _fuse, _gramian, _moments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of triton's own compiler, on Python 3.13

STRIDES = ("stride", "size", "out_step", "row_step", "mean_step", "variance_step", "new_step")
NUMBERS = ("kappa", "cap", "eps")
BLOCK = 1024


def assembled(kernel, count, absent=(), **options):
    """The intermediate representation and PTX for sm_90, four-byte rows, everything aligned."""
    kind = {"table": "*i64", "sums": "*fp64", "out": "*fp64" if kernel is _gramian._kernel else "*fp32"}
    constants = {"M": count, "PADDED": 1 << (count - 1).bit_length(), "BLOCK": BLOCK, "VECTOR": 4}
    constants |= {**options, **dict.fromkeys(absent)}
    signature, aligned = {}, {}
    for position, name in enumerate(kernel.signature.parameters):
        if name in constants:
            signature[name] = "constexpr"
        elif name in STRIDES:
            signature[name] = "i32"
        elif name in NUMBERS:
            signature[name] = "fp32"
        else:
            signature[name] = kind.get(name, "*fp32")
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    found = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "enable_fp_fusion": True})
    return found.asm["ttir"], found.asm["ptx"]


KERNELS = {
    "gramian": (_gramian._kernel, {"WIDE": tl.float32}),
    "combine": (_combine._kernel, {"WIDE": tl.float32, "STRIDED": False}),
    "moments": (_moments._kernel, {"absent": ("new",), "STATE": tl.float32}),
    "fuse": (_fuse._kernel, {"WIDE": tl.float32, "STATE": tl.float32, "STRIDED": False}),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("count", [1, 3])
def test_loads_are_vectors_and_offsets_64_bit(name, count):
    kernel, options = KERNELS[name]
    representation, ptx = assembled(kernel, count, **options)
    offsets = re.findall(rf"tt\.addptr .*tensor<(?:\d+x)?{BLOCK}x!.*, tensor<(?:\d+x)?{BLOCK}x(i\d+)>", representation)
    assert len(offsets) >= 2
    assert set(offsets) == {"i64"}
    assert re.search(r"ld\.global[\w.:]*\.v4", ptx)
    assert ".local" not in ptx  # nothing spilled
