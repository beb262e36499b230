"""The trainer on a folder of latents: 16 channels of another shape than pixels, and real text."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.attention import VSA
from models.video_dit import VideoDiTConfig
from train.data import LatentDataLoader
from train.data.latents.records import SCHEMA, tensor_columns
from train.records.metrics import Metrics
from train.settings import TrainingConfig
from train.titan import LRSchedulersContainer, default_adamw
from train.trainer import Trainer
from train.validation import Validator
from train.weights.checkpoint import Checkpointer


def test_a_run_on_latents_validates_and_resumes_exactly(tmp_path):
    rng = torch.Generator().manual_seed(0)
    rows = []
    for i in range(12):
        latent, text = (torch.randn(s, generator=rng) for s in ((16, 3, 4, 10), (i % 4 + 1, 8)))
        columns = tensor_columns("vae_latent", latent) | tensor_columns("text_embedding", text)
        rows.append({name: None for name in SCHEMA.names} | columns)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "a.parquet", row_group_size=5)
    size = {"dim": 32, "heads": 2, "layers": 1, "ffn": 64, "context_dim": 8}
    slot = VSA(tile=(3, 2, 2), top_k=1)
    config = Trainer.Config(
        model=VideoDiTConfig(
            channels=16, video=(3, 4, 10), patch=(1, 2, 2), attention=slot, **size
        ),
        dataloader=LatentDataLoader.Config(
            path=str(tmp_path), num_frames=3, height=4, width=10, text_tokens=5, text_dim=8
        ),
        dump_folder=str(tmp_path / "straight"),
        training=TrainingConfig(steps=6, local_batch_size=2),
        optimizer=default_adamw(lr=3e-3),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        validation=Validator.Config(interval=3, clips=4, sample_steps=2),
        checkpoint=Checkpointer.Config(interval=3),
        metrics=Metrics.Config(log_freq=1, enable_tensorboard=True),
    )
    straight = config.build()
    wanted = straight.train()
    straight.close()
    assert [step for step, _ in wanted.validation] == [0, 3, 6]
    half = replace(config, dump_folder=str(tmp_path / "resumed"))
    for until in (3, 6):
        trainer = half.build()
        history = trainer.train(until=until)
        trainer.close()
    losses = [[step.loss for step in h.steps] for h in (history, wanted)]
    assert losses[0] == losses[1][3:] and len(losses[1]) == 6
    assert history.validation == wanted.validation[2:]
