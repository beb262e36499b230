"""The average that diffusers' EMAModel makes of a model with gates, saved as the docs say."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel
from small_models import SMALL

from flexsparse.diffusers import VSA, gates_of, sparsify

DOCS = (Path(__file__).parents[2] / "docs/wan.md").read_text()
(SAVING,) = (code for code in re.findall(r"```python\n(.*?)```", DOCS, re.S) if "ema." in code)


@pytest.mark.parametrize("name", SMALL)
def test_the_average_is_saved_with_its_gates_and_training_goes_on(name, tmp_path):
    model = SMALL[name].model(0)
    sparsify(model, VSA(sparsity=0.5))
    own = dict(model_cls=type(model), model_config=model.config)
    ema = EMAModel(model.parameters(), **own)
    with torch.no_grad():
        for _ in range(3):
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
            ema.step(model.parameters())
    trained = {n: p.detach().clone() for n, p in model.named_parameters()}
    average = dict(zip(trained, ema.shadow_params, strict=True))
    with pytest.raises(RuntimeError):  # it fills a new, dense model, in order
        ema.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()

    pipe = SimpleNamespace(transformer=model)
    exec(compile(SAVING, "docs/wan.md", "exec"), dict(pipe=pipe, ema=ema, FOLDER=tmp_path / "ema"))
    assert all(torch.equal(p, trained[n]) for n, p in model.named_parameters())
    loaded = type(model).from_pretrained(tmp_path / "ema")
    sparsify(loaded, VSA(sparsity=0.5))
    found = dict(loaded.named_parameters())
    assert found.keys() == average.keys() and len(gates_of(loaded)) == 4
    assert all(torch.equal(p, average[n]) for n, p in found.items())
    assert not any(torch.equal(p, trained[n]) for n, p in gates_of(loaded).items())
