"""Records in FastVideo's schema, written by plain pyarrow, and what they must be read as."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train.data import LatentDataLoader

SHAPE, OTHER, MEAN, STD = (2, 3, 4, 5), (2, 1, 4, 5), (0.5, -0.25), (2.0, 0.3)
TEXT = {"text_tokens": 4, "text_dim": 6}
I2V = ("clip_feature", "first_frame_latent", "pil_image")


def fastvideo_schema(tensors):
    """As FastVideo's schema.py has it: string, binary, list<int64>, int64 and float64 columns."""
    fields = [("id", pa.string())]
    for name in tensors:
        fields += [
            (f"{name}_bytes", pa.binary()),
            (f"{name}_shape", pa.list_(pa.int64())),
            (f"{name}_dtype", pa.string()),
        ]
    fields += [(name, pa.string()) for name in ("file_name", "caption", "media_type")]
    fields += [(name, pa.int64()) for name in ("width", "height", "num_frames")]
    return pa.schema([*fields, ("duration_sec", pa.float64()), ("fps", pa.float64())])


T2V_SCHEMA = fastvideo_schema(("vae_latent", "text_embedding"))
I2V_SCHEMA = fastvideo_schema(("vae_latent", "text_embedding", *I2V))


def record(number, shape=SHAPE, text=(3, 6)):
    """Values that depend on `number` alone, as FastVideo's record creators lay them out."""
    rng = np.random.default_rng(number)
    made = {"vae_latent": shape, "text_embedding": text} | {name: (2, 7) for name in I2V}
    row = {"id": f"clip{number}", "file_name": f"clip{number}", "caption": f"caption {number}"}
    for name, size in made.items():
        values = rng.standard_normal(size, dtype=np.float32)
        row |= {f"{name}_bytes": values.tobytes(), f"{name}_shape": list(size)}
        row |= {f"{name}_dtype": str(values.dtype)}
    numbers = {"width": 40, "height": 32, "num_frames": shape[1], "duration_sec": 0.9, "fps": 16.0}
    return row | {"media_type": "video"} | numbers


def write(file, records, schema=T2V_SCHEMA, row_group_size=64):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{name: r[name] for name in schema.names} for r in records]
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, file, compression="zstd", row_group_size=row_group_size)


def write_clips(folder, n, per_file=5, row_group_size=2):
    for first in range(0, n, per_file):
        rows = [record(i) for i in range(first, min(n, first + per_file))]
        write(folder / f"{first:03d}.parquet", rows, row_group_size=row_group_size)


def config(folder, **changes):
    c, t, h, w = SHAPE
    size = {"channels": c, "num_frames": t, "height": h, "width": w, **TEXT}
    stats = {"latents_mean": MEAN, "latents_std": STD}
    return LatentDataLoader.Config(**{"path": str(folder), **size, **stats, **changes})


def expected(number, shape=SHAPE, text=(3, 6), mean=MEAN, std=STD):
    """The clip in NumPy's fp32: elementwise, so to be met to the bit."""
    row = record(number, shape, text)
    latent = np.frombuffer(row["vae_latent_bytes"], np.float32).reshape(shape)
    channels = [np.asarray(x, np.float32).reshape(-1, 1, 1, 1) for x in (mean, std)]
    context = np.zeros((4, 6), np.float32)
    context[: text[-2]] = np.frombuffer(row["text_embedding_bytes"], np.float32).reshape(text)
    return (latent - channels[0]) / channels[1], context


def numbers(batches, upto=60):
    """Which records these are, by the first value of each latent."""
    first = {expected(i)[0].flat[0]: i for i in range(upto)}
    return [first[float(clip.flatten()[0])] for b in batches for clip in b["video"]]


def take(loader, n):
    return list(itertools.islice(loader, n))
