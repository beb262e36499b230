"""FastVideo's parquet records of clips: a tensor is three columns, its bytes, shape and dtype.

The columns are those of FastVideo's `pyarrow_schema_t2v` (fastvideo/dataset/dataloader/schema.py);
its records for image-to-video have more, which nothing here reads.

`vae_latent` is [C, T, H, W], the raw mean of the VAE's posterior: FastVideo, like us, normalises it
channel by channel when it trains. `text_embedding` is [N, dim], without padding. FastVideo takes
all bytes for float32, whatever the dtype beside them says, so that is what we write.
"""

import math

import pyarrow as pa
import torch
from torch import Tensor

# Of Wan 2.1's VAE, which Wan 2.2's 14B models share (its `latents_mean` and `latents_std`).
WAN_LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


def _tensor_fields(name: str) -> list[pa.Field]:
    return [
        pa.field(f"{name}_bytes", pa.binary()),
        pa.field(f"{name}_shape", pa.list_(pa.int64())),
        pa.field(f"{name}_dtype", pa.string()),
    ]


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        *_tensor_fields("vae_latent"),
        *_tensor_fields("text_embedding"),
        pa.field("file_name", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("media_type", pa.string()),
        pa.field("width", pa.int64()),
        pa.field("height", pa.int64()),
        pa.field("num_frames", pa.int64()),
        pa.field("duration_sec", pa.float64()),
        pa.field("fps", pa.float64()),
    ]
)
TENSOR_COLUMNS = [f.name for name in ("vae_latent", "text_embedding") for f in _tensor_fields(name)]
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def tensor_columns(name: str, tensor: Tensor) -> dict[str, object]:
    """The three values of a record that hold the tensor, as float32.

    >>> tensor_columns("text_embedding", torch.zeros(2, 3))["text_embedding_shape"]
    [2, 3]
    """
    return {
        f"{name}_bytes": tensor.detach().float().cpu().numpy().tobytes(),
        f"{name}_shape": list(tensor.shape),
        f"{name}_dtype": "float32",
    }


def read_tensor(table: pa.Table, name: str, row: int) -> Tensor:
    """The tensor of a row: float32, in the shape that it has there; [0] if it has none.

    Raises ValueError where bytes, shape and dtype do not go together.
    """
    shape = table[f"{name}_shape"][row].as_py() or [0]
    said = table[f"{name}_dtype"][row].as_py()
    numel = math.prod(shape)
    if not numel:
        return torch.zeros(shape)
    data = table[f"{name}_bytes"][row].as_buffer() or b""
    dtype = DTYPES.get(str(said).removeprefix("torch."))
    if dtype is None or numel * dtype.itemsize != len(data):
        raise ValueError(
            f"{name} is {len(data)} bytes, which is no {said} of shape {shape} "
            f"(dtypes are {', '.join(DTYPES)}): preprocess this clip again"
        )
    return torch.frombuffer(bytearray(data), dtype=dtype).view(shape).float()
