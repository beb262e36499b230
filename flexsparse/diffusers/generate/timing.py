"""Which part of a pipeline takes how long, and what its VAE was given last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from flexsparse.diffusers.families import family_of
from flexsparse.diffusers.generate.clock import Clock

TEXT, MODEL, ATTENTION, VAE = "text", "transformer", "of which self-attention", "VAE"


class Decoding:
    """The latent that a VAE's `decode` was called with, so that a failure from there on does not
    lose it.

    Attributes:
        latent: None before that, and of a clip that is decoded section by section, whose latents
            are none of the whole clip.
    """

    latent: Tensor | None = None
    again = False

    def keep(self, z: Tensor, *args: Any, **kwargs: Any) -> None:
        """The decoding begins."""
        self.latent, self.again = None if self.again else z, True

    def drop(self, *args: Any) -> None:
        """A transformer is called: what was decoded is not the whole."""
        self.latent = None


@contextmanager
def timed(pipe: Any, models: list[Any], clock: Clock, compiled: bool) -> Iterator[Decoding]:
    """Within it, calls of the pipeline add to a clock: of its text encoders, its transformers,
    their self-attention with its projections, its VAE.

    Args:
        models: the transformers.
        compiled: whether their blocks are, which hooks cannot look into: no time of attention.
    """
    decoding = Decoding()
    with ExitStack() as all_of:
        if hasattr(pipe, "encode_prompt"):
            all_of.enter_context(_wrapped(pipe, "encode_prompt", clock, TEXT))
        all_of.enter_context(clock.inside(MODEL, models))
        if not compiled:
            layers = [attn for model in models for _, attn in family_of(model).layers(model)]
            all_of.enter_context(clock.inside(ATTENTION, layers))
        if getattr(pipe, "vae", None) is not None:
            clock.claim(VAE)
            all_of.enter_context(_wrapped(pipe.vae, "encode", clock, VAE))
            all_of.enter_context(_wrapped(pipe.vae, "decode", clock, VAE, decoding.keep))
            for model in models:
                all_of.callback(model.register_forward_pre_hook(decoding.drop).remove)
        yield decoding


@contextmanager
def _wrapped(
    owner: Any, name: str, clock: Clock, part: str, first: Callable[..., None] | None = None
) -> Iterator[None]:
    """Within it, a method of this one object is timed, and `first` is told of what it is given."""
    method = getattr(owner, name)
    clock.claim(part)

    def call(*args: Any, **kwargs: Any) -> Any:
        if first is not None:
            first(*args, **kwargs)
        with clock.part(part):
            return method(*args, **kwargs)

    before = vars(owner).get(name)
    object.__setattr__(owner, name, call)
    try:
        yield
    finally:
        if before is None:
            object.__delattr__(owner, name)
        else:
            object.__setattr__(owner, name, before)
