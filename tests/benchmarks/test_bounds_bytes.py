"""Bytes that launches move, by the source that Inductor writes: of buffers, of a block of Wan."""

import pytest

from benchmarks import bounds_tables as tables
from benchmarks.bounds.buffers import inputs, least_moved, sizes, unknown
from benchmarks.bounds.passes import moved
from benchmarks.record import append

GRAPH = """
    buf0 = empty_strided_cuda((2, 64, 128), (8192, 128, 1), torch.bfloat16)
    buf1 = empty_strided_cuda((2, 1, 128), (128, 128, 1), torch.float32)
    buf2 = buf0; del buf0  # reuse
    buf3 = empty_strided_cuda((0, ), (1, ), torch.int32)
    buf4 = reinterpret_tensor(buf1, (256, ), (1, ), 0); del buf1  # reuse
    buf6 = buf5[0]
    assert_tensor_metadata(buf6, (2, 64), (64, 1), torch.bfloat16, 'torch.ops.aten.other')
    _shared_storage_0 = rand_strided((64,), (1,), device='cuda:0', dtype=torch.float32)
    getitem_1 = torch.as_strided(_shared_storage_0, (2, 8), (8, 1))
    buf8 = reinterpret_tensor(buf4, (2, 4), (4, 1), 16)  # alias
    primals_1 = rand_strided((128,), (1,), device='cuda:0', dtype=torch.int32)
"""


def test_memory_is_moved_once_however_often_a_kernel_asks_for_it():
    """Rows of buf1 are added to 64 rows each: in fp32 that is twice what buf2 has."""
    known = sizes(GRAPH)
    add, rest = 2 * 64 * 128 * 2, 2 * 128 * 4
    assert known == dict(
        buf0=add,
        buf1=rest,
        buf2=add,
        buf3=0,
        buf4=rest,
        buf6=256,
        primals_1=512,
        _shared_storage_0=256,
        getitem_1=64,
        buf8=32,
    )
    assert inputs(GRAPH) == dict(primals_1=512, _shared_storage_0=256)
    assert unknown("buf2, buf7, getitem_1, 64, stream=raw_stream0", known) == ["buf7"]
    text = "def kernel(in_out_ptr0, in_ptr0, xnumel, XBLOCK : tl.constexpr):"
    assert least_moved("buf2, buf1, 16384", text, known) == 2 * add + rest
    view = "reinterpret_tensor(buf2, (128, 128), (128, 1), 0), buf1, primals_1, 16384"
    text = "def kernel(in_ptr0, in_ptr1, out_ptr0, xnumel, XBLOCK : tl.constexpr):"
    assert least_moved(view, text, known) == add + rest + 512
    ours = "def kernel(x, out, n, BLOCK : tl.constexpr):\n    pass\ndef _part(in_out_ptr0, y):"
    assert least_moved("buf2, buf4, 12, 64", ours, known) == add + rest


def test_what_a_block_moves_is_told_as_it_was_first_and_as_it_is(tmp_path):
    for size in (3e9, 9e9, 1e9):
        row = dict(attention="vsa", graph="forward", torch_bytes=size, torch_launches=2)
        append("passes", row | dict(ours_bytes=5e8, ours_launches=1), tmp_path)
    row = dict(attention="vsa", graph="backward", attention_bytes=2e9, attention_launches=1)
    append("passes", row, tmp_path)
    found = tables.passes(tmp_path)
    assert "| vsa | 3.00 (2) to 1.00 (2) | 0.50 (1) | - | - | - | 2.00 (1) |" in found


def test_a_launch_with_a_buffer_of_unknown_size_is_an_error():
    text = "@triton.jit\ndef triton_poi_0(in_ptr0, xnumel):\n    pass\n"
    source = f"triton_0 = async_compile.triton('triton_poi_0', '''\n{text}''', device_str='cuda')\n"
    source += "    buf0 = empty_strided_cuda((4, ), (1, ), torch.float32)\n"
    source += "        triton_0.run({}, 4, stream=raw)\n"
    assert moved(source.format("buf0")) == dict(torch_launches=1, torch_bytes=16)
    with pytest.raises(RuntimeError, match="given buf1, of no known size"):
        moved(source.format("buf1"))
