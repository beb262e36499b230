"""Ranks that share the rows of sequences compute what one process does."""

from unittest import mock

import forked
import pytest
import torch
import ulysses_ranks as ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import assert_accurate, seeds
from torch.multiprocessing.spawn import start_processes

from flexsparse.nn.ulysses import Ulysses, check_heads
from train.sparsity.attention_stats import attention_stats

degrees = pytest.mark.parametrize("degree", ranks.DEGREES)
layers = pytest.mark.parametrize("name", ranks.LAYERS)


def drawn_examples(count: int = 30) -> list[ranks.Drawn]:
    """What Hypothesis draws, for all processes to meet together."""
    examples = []
    rows = st.integers(1, 40)

    @settings(max_examples=count, database=None)
    @given(
        st.builds(
            ranks.Drawn,
            heads=st.lists(st.integers(1, 3), min_size=1, max_size=5).map(tuple),
            batch=st.integers(1, 3),
            dim=st.sampled_from([1, 16, 24]),
            quarters=st.tuples(rows, rows, rows, rows),
            seed=seeds,
            dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
        )
    )
    def collect(drawn: ranks.Drawn) -> None:
        examples.append(drawn)

    collect()
    return examples


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank of each degree has, and the drawn examples."""
    folder, drawn = tmp_path_factory.mktemp("ulysses"), drawn_examples()
    forked.get_ready()
    start_processes(ranks.run, (str(folder), drawn), ranks.WORLD, start_method="forkserver")
    results = {
        degree: [
            torch.load(folder / f"{degree}_{rank}.pt", weights_only=False)
            for rank in range(ranks.WORLD)
        ]
        for degree in ranks.DEGREES
    }
    return results, drawn


def one_group(found, degree, name):
    """What the ranks of the last group of this degree have."""
    return [result[name] for result in found[0][degree][-degree:]]


@degrees
def test_all_rows_of_some_heads_and_back_bit_for_bit(found, degree):
    for i, drawn in enumerate(found[1]):
        group = [results[i] for results in one_group(found, degree, "drawn")]
        for number, whole in enumerate(drawn.whole()):
            heads = torch.cat([result["heads"][number] for result in group], 1)
            assert torch.equal(heads, whole), drawn
        for result in group:
            assert all(result["back"]) and result["gathered"], drawn
            assert result["gradient"] and result["gathered heads"], drawn


def assert_equals_one_process(group, one, exact):
    """Outputs and gradients by rows, those of parameters in sum."""
    by_rows = zip(*(result["rows"] for result in group), strict=True)
    sums = zip(*(result["parameters"] for result in group), strict=True)
    ours = [torch.cat(parts, -2) for parts in by_rows] + [sum(parts) for parts in sums]
    plain, exact = ([*results["rows"], *results["parameters"]] for results in (one, exact))
    assert_accurate(ours, [plain], exact)


@degrees
@layers
def test_layers_equal_one_process(found, degree, name):
    group, one = one_group(found, degree, name), ranks.layer_results(name)
    assert_equals_one_process(group, one, ranks.layer_results(name, torch.float64))
    if one["choice"] is not None:
        for part, whole in enumerate(one["choice"][:2]):
            chosen = torch.cat([result["choice"][part] for result in group], 1)
            assert torch.equal(chosen, whole)


@degrees
@layers
def test_a_layer_sends_what_is_written_and_in_two_collectives(found, degree, name):
    rows = (ranks.RASTER_ROWS if name == "dense" else ranks.ROWS)[degree]
    kv = ranks.HEADS // 2 if name == "bsa with fewer keys" else ranks.HEADS
    gates = 2 if name.startswith("vsa") or name == "dense with gates" else 0
    heads = (1 + gates) * ranks.HEADS + 2 * kv
    for rank, result in enumerate(one_group(found, degree, name)):
        mine = ranks.BATCH * 16 * rows[rank]
        others = ranks.BATCH * 16 * (sum(rows) - rows[rank])
        forward, backward = (
            [sum(splits) - splits[rank] for splits in calls] for calls in result["sent"]
        )
        from_mine, from_others = (degree - 1) / degree * mine, others / degree
        assert forward == [heads * from_mine, ranks.HEADS * from_others]
        assert backward == [ranks.HEADS * from_mine, heads * from_others]
        assert result["plain"], "a tensor whose heads merge without a copy"


@degrees
@pytest.mark.parametrize("name", ranks.MODELS)
def test_models_equal_one_process(found, degree, name):
    group = one_group(found, degree, name)
    model, batch = ranks.awake(name)
    one, stats = ranks.model_results(model, batch), attention_stats(model, *batch)
    x, t, context = batch
    exact = ranks.model_results(model.double(), [x.double(), t, context.double()])
    for key in ("results", "even"):
        outs = [result[key][0] for result in group]
        assert all(torch.equal(out, outs[0]) for out in outs)
        sums = zip(*(result[key][1:] for result in group), strict=True)
        assert_accurate([outs[0], *(sum(parts) for parts in sums)], [one], exact)
    for result in group:
        for ours, due in zip(result["stats"], stats, strict=True):
            assert (ours.sparsity, ours.flops) == (due.sparsity, due.flops)
            if name == "raster":
                assert ours.admitted is ours.kept is due.kept is None
            else:
                assert torch.equal(ours.admitted, due.admitted)
                assert torch.equal(ours.kept, due.kept)


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="12 heads cannot be shared by 5 ranks.*: 1, 2, 3, 4, 6"):
        check_heads(12, 5)
    with pytest.raises(ValueError, match="give each rank at least one"):
        Ulysses("group", 0, (3, 0))
    with pytest.raises(ValueError, match="rank 2 has none of the 2 rows"):
        Ulysses("group", 2, (3, 4))
    with pytest.raises(ValueError, match="2 rows cannot be shared by 3 ranks: lower the degree"):
        Ulysses.even(mock.Mock(**{"size.return_value": 3}), 2)
    shards = Ulysses("group", 1, (3, 4))
    with pytest.raises(ValueError, match="with 6 rows, but the ranks share 7"):
        shards.shard(torch.zeros(6, 1), 0)
    with pytest.raises(ValueError, match=r"with 3 rows, but rank 1 has 4 of \(3, 4\)"):
        shards.gather(torch.zeros(3, 1), 0)
    q = torch.zeros(1, 4, 4, 16)
    with pytest.raises(ValueError, match=r"\[B, H, 4, D\] is due of rank 1"):
        shards.to_heads(q, q[:, :, :3])
    with pytest.raises(ValueError, match="3 heads cannot be shared by 2 ranks"):
        shards.to_heads(q, q[:, :3])
    with pytest.raises(ValueError, match="agree in batch, dim, dtype and device"):
        shards.to_heads(q, q.bfloat16())
    with pytest.raises(ValueError, match=r"\[B, heads, 7, D\] is due"):
        shards.to_sequence(q)
