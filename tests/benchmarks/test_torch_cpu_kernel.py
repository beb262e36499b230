"""What docs/design.md says of torch's FlexAttention for CPUs is what the rows say."""

from benchmarks.record import read


def test_it_is_wrong_without_avx_512_at_small_head_dims_and_lengths_and_right_elsewhere():
    rows = read("torch_cpu_kernel")
    assert {row["capability"] for row in rows} == {"AVX2", "AVX512"}
    for row in rows:
        wrong = row["capability"] == "AVX2" and row["head_dim"] < 24 and row["length"] < 256
        assert row["error"] > 0.3 if wrong else row["error"] < 1e-6
