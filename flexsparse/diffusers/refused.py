"""Video models of diffusers that cannot be sparsified, and why."""

from flexsparse.diffusers.families import refuse

refuse(
    "LatteTransformer3DModel",
    "each of its layers attends within one frame or along time at one place, none to the video",
)
refuse(
    "SanaVideoTransformer3DModel",
    "its self-attention is linear, without scores of pairs of tokens to select tiles by",
)
refuse(
    "SanaWMTransformer3DModel",
    "most of its layers are linear attention (a gated delta rule), without scores of pairs of "
    "tokens to select tiles by",
)
refuse(
    "SanaWMLTX2RefinerTransformer3DModel",
    "its queries attend to cached keys of earlier windows beside their own, which are in no grid",
)
refuse(
    "WanAnimate2Transformer3DModel",
    "each frame attends to the same frame of a cached reference video, by a block mask of its own",
)
refuse(
    "AnyFlowFARTransformer3DModel",
    "chunks of frames attend causally, by a block mask of its own or to cached keys",
)
refuse(
    "Kandinsky6SRTransformer3DModel",
    "it is sparse already: each layer makes a NABLA mask of its own, and has no dense attention",
)
refuse(
    "TransformerTemporalModel",
    "it attends along time at each place by itself: no layer attends to the whole video",
)
for _name in (
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "I2VGenXLUNet",
):
    refuse(
        _name,
        "a U-Net, it attends within one frame or along time at one place, nowhere to the video",
    )
