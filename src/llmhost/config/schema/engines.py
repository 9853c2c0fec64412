"""[models.NAME.options]: what an engine of our own can be told."""

from typing import Annotated, Literal

from msgspec import Meta

from llmhost.config.schema.section import Count, Positive, Section


class FakeOptions(Section, frozen=True):
    """[models.NAME.options] of engine "fake"."""

    prefill_delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time that each step with a new prompt in it takes."""
    token_delay_ms: Annotated[float, Meta(ge=0)] = 0.0
    """Time that every step takes."""
    fail_after_tokens: Count | None = None
    """Each sequence fails after this many generated tokens; none does when absent."""
    vocab: Annotated[int, Meta(ge=16, le=1_000_000)] = 4096
    """Number of different words."""
    task: Literal["generate", "embed", "classify"] = "generate"
    """What it stands in for: a model that generates text, that embeds it, or that classifies it."""
    labels: tuple[str, ...] = ("relevant",)
    """What it tells apart when it classifies; with a single label it scores pairs of texts."""


class TorchOptions(Section, frozen=True):
    """[models.NAME.options] of engine "torch"."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Computation type; `auto` is float32 on the CPU and the checkpoint's own on a GPU."""
    device: str = "auto"
    """`auto` (the first GPU, else the CPU), `cpu`, or `cuda:N`."""
    threads: Positive | None = None
    """CPU threads of the forward pass; torch's own choice when absent. One number for the whole process."""
    trust_remote_code: bool = False
    """Run modelling code that comes with the checkpoint. Only for checkpoints that you trust like a program."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model is for; `auto` asks its architecture and the files of sentence-transformers beside it."""
    pooling: Literal["mean", "cls", "last", "max"] | None = None
    """Which tokens' vectors become a text's, for models that embed; when absent, as the checkpoint says."""
    normalize: bool | None = None
    """Scale embeddings to length 1; when absent, as the checkpoint says."""
    weights: Literal["auto", "fp8", "int4"] = "auto"
    """Bits of a weight on a GPU: `fp8` has 8 and `int4` 4, which saves memory and changes answers; or as loaded."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """What the KV cache keeps: `fp8` holds twice the tokens that 16 bits do, and changes answers; or as computed."""
    attention: Literal["auto", "triton", "flashinfer", "flash_attention_3"] = "auto"
    """Who attends to prompts on a GPU: our own kernels are `triton`; `auto` takes a library where one is there."""


class LlamaOptions(Section, frozen=True):
    """[models.NAME.options] of engine "llama"."""

    threads: Positive | None = None
    """CPU threads of the forward pass; as many as there are cores when absent."""
    gpu_layers: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Layers whose weights go to the GPU, where llama-cpp-python was built for one."""
    kv_dtype: Literal["auto", "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "auto"
    """What the KV cache keeps; `auto` is f16. The q-types take a half to a quarter of that and change answers."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """The quicker way to compute attention; `auto` where the device has it. The KV types that begin with q need it."""
    kv_layout: Literal["auto", "unified", "partitioned"] = "auto"
    """KV in one buffer for all, or one for each: quicker for many unlike short texts. `auto` goes by what runs."""
    mmap: bool = True
    """Map the file instead of reading it: loads at once, and pages that are not used can leave memory."""
    mlock: bool = False
    """Keep the weights from being swapped out, as far as the process may lock memory."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model is for; `auto` asks the file, which says how the model pools a text if it is made for that."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """Which tokens' vectors become a text's, for models that embed; when absent, as the file says."""


ENGINE_OPTIONS: dict[str, type[Section]] = {
    "torch": TorchOptions,
    "llama": LlamaOptions,
    "fake": FakeOptions,
}
