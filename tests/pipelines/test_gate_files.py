"""Which of a folder's files gates are read from: those that were asked for, or an error."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL
from test_gates import SPARSE

from flexsparse.diffusers import gates_of, load_gates, save_gates, sparsify
from flexsparse.diffusers.origin import fill_from_origin

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
SHARDS = dict(max_shard_size="20KB")


def trained(value, seed=0):
    """A sparse model with gates of this value and weights of this seed."""
    model = SMALL["wan"].model(seed)
    sparsify(model, SPARSE)
    with torch.no_grad():
        for p in gates_of(model).values():
            p.fill_(value)
    return model


def value_of(model):
    """The one value that all gates have."""
    values = {x for p in gates_of(model).values() for x in p.unique().tolist()}
    assert len(values) == 1
    return round(values.pop(), 3)


def loaded(folder, **options):
    model = type(SMALL["wan"].model(0)).from_pretrained(folder, **options)
    with warnings.catch_warnings(action="error"):
        sparsify(model, SPARSE)
    return value_of(model)


@pytest.mark.parametrize("saving", [{}, SHARDS, dict(safe_serialization=False)], ids=str)
def test_gates_are_those_of_the_variant_that_was_loaded(saving, tmp_path):
    trained(0.1).save_pretrained(tmp_path, **saving)
    trained(0.2, seed=1).save_pretrained(tmp_path, variant="ema", **saving)
    safe = dict(use_safetensors=saving.get("safe_serialization", True))
    if saving is not SHARDS:  # of which diffusers removes those that it takes for older ones
        assert loaded(tmp_path, **safe) == 0.1
        assert loaded(tmp_path, torch_dtype=torch.bfloat16, **safe) == 0.1
    assert loaded(tmp_path, variant="ema", **safe) == 0.2
    model = trained(0.0)
    load_gates(model, tmp_path, variant="ema")
    assert value_of(model) == 0.2
    with pytest.raises(FileNotFoundError, match=r"no variant fp16 of .* it has variants: ema"):
        load_gates(model, tmp_path, variant="fp16")
    assert value_of(model) == 0.2


def test_variants_that_differ_in_their_gates_alone_are_refused(tmp_path):
    trained(0.1).save_pretrained(tmp_path)
    trained(0.2).save_pretrained(tmp_path, variant="ema")
    for variant in (None, "ema"):
        with pytest.raises(ValueError, match=r"model.safetensors and .*ema.safetensors have diff"):
            loaded(tmp_path, variant=variant)
        model = trained(0.0)
        load_gates(model, tmp_path, variant)
        assert value_of(model) == (0.2 if variant else 0.1)
    load_gates(model, tmp_path / "diffusion_pytorch_model.safetensors")
    assert value_of(model) == 0.1


def test_stale_files_beside_newer_ones_are_not_read(tmp_path):
    trained(0.1).save_pretrained(tmp_path)
    trained(0.2, seed=1).save_pretrained(tmp_path, **SHARDS)  # the index goes before the one file
    stale = load_file(tmp_path / "diffusion_pytorch_model-00002-of-00008.safetensors")
    stale = {name: torch.full_like(x, 0.3) if "gate" in name else x for name, x in stale.items()}
    save_file(stale, tmp_path / "diffusion_pytorch_model-00009-of-00009.safetensors")
    assert loaded(tmp_path) == 0.2
    load_gates(model := trained(0.0), tmp_path)
    assert value_of(model) == 0.2
    (tmp_path / "diffusion_pytorch_model-00002-of-00008.safetensors").unlink()
    with pytest.raises(ValueError, match=r"00002-of-00008.safetensors is no file"):
        load_gates(model, tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").unlink()
    assert loaded(tmp_path) == 0.1
    load_gates(model, tmp_path)
    assert value_of(model) == 0.1


def test_gates_of_two_formats_that_differ_are_refused(tmp_path):
    """The weights are the same, and nothing tells which of them the model was loaded from."""
    trained(0.1).save_pretrained(tmp_path, safe_serialization=False)
    SMALL["wan"].model(0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors and .*model.bin have different gates"):
        loaded(tmp_path)
    SMALL["wan"].model(1).save_pretrained(tmp_path)
    assert loaded(tmp_path) == 0
    assert loaded(tmp_path, use_safetensors=False) == 0.1


def test_save_gates_and_save_pretrained_into_one_folder_agree_or_are_refused(tmp_path):
    model = trained(0.1)
    save_gates(model, tmp_path)
    model.save_pretrained(tmp_path)
    assert loaded(tmp_path) == 0.1
    with torch.no_grad():
        for p in gates_of(model).values():
            p.fill_(0.2)
    model.save_pretrained(tmp_path)
    for read in (loaded, lambda folder: load_gates(model, folder)):
        with pytest.raises(ValueError, match=r"model.safetensors.* different gates"):
            read(tmp_path)
    (tmp_path / "gates.safetensors").unlink()
    assert loaded(tmp_path) == 0.2


def test_gates_beside_dense_weights_are_found(tmp_path):
    for folder in (tmp_path, tmp_path / "transformer"):
        SMALL["wan"].model(0).save_pretrained(folder)
        save_gates(trained(0.1), folder)
    assert loaded(tmp_path / "transformer") == 0.1
    shutil.move(tmp_path / "gates.safetensors", tmp_path / "transformer/gates.safetensors")
    assert loaded(tmp_path, subfolder="transformer") == 0.1


def test_a_model_in_a_subfolder_is_told_by_its_weights(tmp_path):
    for step in (500, 1000):
        trained(step / 10000, seed=step).save_pretrained(tmp_path / f"step-{step}/transformer")
    SMALL["ltx"].model(0).save_pretrained(tmp_path / "another")
    for step in (500, 1000):
        assert loaded(tmp_path, subfolder=f"step-{step}/transformer") == step / 10000
    save_gates(trained(0.3), tmp_path)
    with pytest.raises(ValueError, match="gates.safetensors may be of any model below it"):
        loaded(tmp_path, subfolder="step-500/transformer")


def test_files_that_cannot_be_read_are_named_where_they_matter(tmp_path):
    trained(0.1).save_pretrained(tmp_path / "whole")
    for name in ("some_lora", "diffusion_pytorch_model.ema", "x.gates"):
        (tmp_path / f"whole/{name}.safetensors").write_bytes(POINTER)
    (tmp_path / "whole/diffusion_pytorch_model.bin").write_bytes(b"torn")
    (tmp_path / "whole/diffusion_pytorch_model.safetensors.index.fp16.json").write_text("{}")
    (tmp_path / "whole/notes").mkdir()
    (tmp_path / "whole/notes/config.json").write_text("[")
    assert loaded(tmp_path / "whole") == 0.1
    model = trained(0.0)
    for variant, words in [("ema", r"ema.safetensors is a pointer.*git lfs"), ("fp16", "index.fp")]:
        with pytest.raises(ValueError, match=words):
            load_gates(model, tmp_path / "whole", variant)
    with pytest.raises(ValueError, match=r"model.bin cannot be read"):
        load_gates(model, tmp_path / "whole/diffusion_pytorch_model.bin")
    (tmp_path / "whole/gates.safetensors").write_bytes(POINTER)
    for read in (loaded, lambda folder: load_gates(model, folder)):
        with pytest.raises(ValueError, match=r"gates.safetensors is a pointer of Git LFS"):
            read(tmp_path / "whole")
    assert value_of(model) == 0


def test_gates_beside_other_weights_than_the_models_are_not_read(tmp_path):
    trained(0.1).save_pretrained(tmp_path / "transformer")
    model = type(SMALL["wan"].model(0)).from_pretrained(tmp_path, subfolder="transformer")
    with torch.no_grad():
        model.blocks[0].attn1.to_q.weight.add_(1)
    with pytest.warns(UserWarning, match=f"{tmp_path}, where .* has other weights than it") as told:
        sparsify(model, SPARSE)
    assert len(told) == 1
    assert value_of(model) == 0
    load_gates(model, tmp_path / "transformer")
    assert value_of(model) == 0.1
    assert json.loads((tmp_path / "transformer/config.json").read_text())["_flexsparse_gates"]


def test_quantised_weights_are_told_by_the_others(tmp_path):
    trained(0.1).save_pretrained(tmp_path)
    model = type(SMALL["wan"].model(0)).from_pretrained(tmp_path)
    for to in (model.blocks[0].attn1.to_q, model.blocks[0].attn1.to_k):
        packed = torch.zeros(to.weight.numel() // 2, 1, dtype=torch.uint8)
        to.weight = torch.nn.Parameter(packed, requires_grad=False)
    gates = {n: torch.nn.Parameter(torch.zeros_like(p)) for n, p in gates_of(trained(0)).items()}
    fill_from_origin(model, gates)
    assert all((p - 0.1).abs().max() < 1e-6 for p in gates.values())


def test_a_file_of_that_name_with_no_gates_of_the_model_is_left_out(tmp_path):
    trained(0.1).save_pretrained(tmp_path / "sparse")
    SMALL["wan"].model(0).save_pretrained(tmp_path / "dense")
    for tensors in (
        {"router.weight": torch.ones(2)},
        {"other.slot.gate_coarse.bias": torch.ones(2)},
    ):
        for name, due in dict(sparse=0.1, dense=0).items():
            save_file(tensors, tmp_path / name / "gates.safetensors")
            assert loaded(tmp_path / name) == due


def test_an_old_pickle_is_read(tmp_path):
    trained(0.1).save_pretrained(tmp_path, safe_serialization=False)
    file = tmp_path / "diffusion_pytorch_model.bin"
    torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    assert loaded(tmp_path, use_safetensors=False) == 0.1
