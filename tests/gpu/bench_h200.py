"""The engine on a GPU beside what the card allows and what transformers does: `python -m tests.gpu.bench_h200`.

A random bf16 model in the shape of Llama 3.1 8B unless told otherwise, on 80 GB or more. Figures are written to `--out`
one by one, as soon as they are known, and the table comes last. Whatever becomes of a section, the next one is begun,
if `--most-s` leaves it its time. `--ahead` is a folder of `tests.gpu.ahead` with kernels that were compiled before.
`--shape tiny --device cpu` rehearses all of it without a GPU.

  http      a server process: its start from files, and its callers' latencies
  decode    steps of 1 to 256 sequences: by the runner alone, and by the engine loop
  fp8       decode with weights and KV cache in float8, where the engine has it
  exact     tokens and logits of small models, and the tests that are marked `gpu`
  peer      transformers: continuous batching and a static batch
  prefill   steps that are one prompt, and one beside decoding sequences
  profile   which kernels such steps are made of
  ceilings  memory, matrix products and uploads at their best, which are measured before they are needed first
"""

import argparse
import gc
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tests.gpu import ahead, engine, exact, models, peer, served
from tests.gpu.budget import Budget, end_late, tell_compiles
from tests.gpu.report import Figure, Report
from tests.gpu.sizes import Sizes
from tests.gpu.timing import Speeds, device_times_s, measure_speeds

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.sampling import Sampling
from llmhost.engines.torch import load
from llmhost.engines.torch.bench import ModelWork, model_work
from llmhost.engines.torch.kernel_path import has_kernels
from llmhost.engines.torch.random_model import random_runner
from llmhost.engines.torch.runner import TorchRunner

SECTIONS = ("http", "decode", "fp8", "exact", "peer", "prefill", "profile", "ceilings")
BLOCK_TOKENS = 16
SHOWN_KERNELS = 6
FIRST_START_S = 60
"""What a server's first start may take, and its end."""
SAMPLED = Sampling(temperature=0.8, top_p=0.95)


class Bench:
    """What the sections share."""

    def __init__(self, shape: str, device: torch.device, report: Report, budget: Budget) -> None:
        self.shape_name, self.shape = shape, models.SHAPES[shape]
        self.device = device
        self.report = report
        self.budget = budget
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        self.sizes = Sizes(is_tiny=shape == "tiny", free_bytes=free)
        self.scratch = Path(tempfile.mkdtemp(prefix="llmhost-gpu-", dir=_roomy()))
        self.families = list(exact.FAMILIES)
        self._runner: TorchRunner | None = None

    @cached_property
    def speeds(self) -> Speeds:
        speeds = measure_speeds(self.device)
        self.report.add(_rate("copy on the device", "GB/s", speeds.copy_bytes_per_s / 1e9))
        self.report.add(_rate("read on the device", "GB/s", speeds.read_bytes_per_s / 1e9))
        self.report.add(_rate("bf16 matrix product", "TFLOP/s", speeds.flops_per_s / 1e12))
        self.report.add(_rate("upload", "GB/s", speeds.upload_bytes_per_s / 1e9))
        self._free()
        return speeds

    @property
    def runner(self) -> TorchRunner:
        """The model, made on the device."""
        if self._runner is None:
            began = time.perf_counter()
            self._runner = random_runner(self.shape, device=self.device, block_tokens=BLOCK_TOKENS)
            self.report.say(f"  the model is there after {time.perf_counter() - began:.1f} s")
        return self._runner

    @cached_property
    def folder(self) -> Path:
        began = time.perf_counter()
        folder = self.scratch / "model"
        written = models.write_folder(folder, self.shape, self.device)
        spent = time.perf_counter() - began
        self.report.say(f"  wrote {written / 1e9:.1f} GB to {folder} in {spent:.1f} s")
        self._free()
        return folder

    def drop_runner(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        self._free()

    def close(self) -> None:
        self.drop_runner()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ------------------------------------------------------------ sections

    def section_exact(self) -> None:
        with exact.marked_tests() as outcome:
            for verdict in exact.small_models(str(self.device), self.families):
                self._say(verdict)
            self._say(outcome(self.budget.within(self.sizes.tests_s)))

    def _say(self, verdict: exact.Verdict) -> None:
        word = "right" if verdict.is_right else "WRONG"
        self.report.say(f"  {word}: {verdict.what}: {verdict.said}")

    def section_ceilings(self) -> None:
        assert self.speeds

    def section_decode(self) -> None:
        work = model_work(self.runner)
        cases: list[Callable[[], None]] = [
            partial(self._decode, self.runner, work, batch, context, "decode")
            for batch, context in self.sizes.decode
        ]
        cases.append(
            partial(self._decode, self.runner, work, *self.sizes.sampled, "decode, top-p", SAMPLED)
        )
        cases += [partial(self._engine, batch, context) for batch, context in self.sizes.engine]
        self._each(cases)

    def _each(self, cases: list[Callable[[], None]]) -> None:
        """All of them, whatever becomes of one; the first failure is raised at the end."""
        failures: list[Exception] = []
        for case in cases:
            try:
                case()
            except Exception as error:  # noqa: BLE001 - the other cases are worth having
                self.report.say(f"  failed: {traceback.format_exc()[-900:]}")
                failures.append(error)
        if failures:
            raise failures[0]

    def _decode(
        self,
        runner: TorchRunner,
        work: ModelWork,
        batch: int,
        context: int,
        title: str,
        sampling: Sampling = engine.GREEDY,
    ) -> None:
        """The runner over rows made by hand."""
        sizes, what = self.sizes, f"{title} {batch} x {context}"
        if not self._has_room(runner, what, batch, context + sizes.steps + 40):
            return
        decoders = engine.Decoders(runner, batch, context, sizes.steps + 40, sampling)
        step_s = engine.runner_step_s(decoders, sizes.steps)
        floor_s = self._floor_s(work, batch, decoders.seen)
        note = f"{batch / step_s:,.0f} tokens/s"
        self.report.add(_time(f"{what}: runner", step_s, floor_s, note))

    def _has_room(self, runner: TorchRunner, what: str, batch: int, tokens: int) -> bool:
        kv_bytes = batch * (tokens + BLOCK_TOKENS) * model_work(runner).kv_token_bytes
        fits = self.sizes.has_room(runner.facts.weights_bytes, kv_bytes)
        if not fits:
            self.report.say(f"  {what}: no room for {kv_bytes / 1e9:.0f} GB of keys and values")
        return fits

    def _floor_s(self, work: ModelWork, batch: int, seen: int) -> float:
        moved = work.weights_bytes + seen * work.kv_token_bytes
        flops = batch * (work.token_flops + work.logits_flops) + seen * work.attention_flops
        return max(moved / self.speeds.bytes_per_s, flops / self.speeds.flops_per_s)

    def _engine(self, batch: int, prompt: int) -> None:
        """The whole loop, prompts first."""
        sizes, work = self.sizes, model_work(self.runner)
        new_tokens, what = sizes.engine_tokens, f"decode {batch} x {prompt}: engine"
        if not self._has_room(self.runner, what, batch, prompt + new_tokens):
            return
        run = engine.engine_run(
            self.runner,
            prompts=engine.random_prompts(self.runner, batch, prompt),
            new_tokens=new_tokens,
            at_once=batch,
            tokens_per_step=8192,
            most_s=self.budget.within(sizes.engine_s),
        )
        if run.step_s is None:
            self.report.say(f"  {what}: its time was up before all decoded")
            return
        floor_s = self._floor_s(work, batch, batch * (prompt + new_tokens // 2))
        note = f"{batch / run.step_s:,.0f} tokens/s, {run.steps} steps"
        self.report.add(_time(what, run.step_s, floor_s, note))

    def section_prefill(self) -> None:
        work = model_work(self.runner)
        cases = [partial(self._prefill, work, tokens) for tokens in self.sizes.prefill]
        self._each([*cases, partial(self._mixed, work, *self.sizes.mixed)])

    def _prefill(self, work: ModelWork, tokens: int) -> None:
        """A step that is one prompt and draws one token."""
        row = engine.prompt_row(self.runner, tokens)
        spent_s = self._median_s(lambda: self.runner.run([row]))
        pairs = tokens * (tokens + 1) // 2
        flops = tokens * work.token_flops + work.logits_flops + pairs * work.attention_flops
        floor_s = max(flops / self.speeds.flops_per_s, work.weights_bytes / self.speeds.bytes_per_s)
        note = f"{flops / spent_s / 1e12:.0f} TFLOP/s, {tokens / spent_s:,.0f} tokens/s"
        note += f", attended by {self.runner.facts.attends or 'torch'}"
        self.report.add(_time(f"prefill {tokens}", spent_s, floor_s, note))

    def _mixed(self, work: ModelWork, batch: int, context: int, tokens: int) -> None:
        """A prompt in the place of one of `batch` sequences that decode."""
        decoders = engine.Decoders(self.runner, batch, context + tokens, 8)
        rows = engine.with_prompt(decoders, tokens)
        spent_s = self._median_s(lambda: self.runner.run(rows))
        flops = (batch - 1 + tokens) * work.token_flops
        floor_s = max(flops / self.speeds.flops_per_s, self._floor_s(work, batch, decoders.seen))
        self.report.add(_time(f"mixed {batch - 1} x {context} + {tokens}", spent_s, floor_s))

    def _median_s(self, call: Callable[[], object]) -> float:
        return statistics.median(device_times_s(call, self.device, self.sizes.rounds))

    def section_profile(self) -> None:
        """After all that is timed: a profiler may leave the process slower than it was."""
        sizes, work = self.sizes, model_work(self.runner)
        cases = [
            *(("decode", *case, engine.GREEDY) for case in sizes.profiled),
            ("decode, top-p", *sizes.sampled, SAMPLED),
        ]
        profiled = [partial(self._profile, self.runner, work, *case) for case in cases]
        self._each([*profiled, *(partial(self._profile_prompt, n) for n in sizes.prefill)])

    def _profile(
        self,
        runner: TorchRunner,
        work: ModelWork,
        title: str,
        batch: int,
        context: int,
        sampling: Sampling,
    ) -> None:
        decoders = engine.Decoders(runner, batch, context, 16, sampling)
        floor_s = self._floor_s(work, batch, decoders.seen)
        kernels = engine.kernel_times(decoders.step, self.device)
        what = f"{title} {batch} x {context}: kernels"
        self.report.add(_time(what, kernels.total_s, floor_s))
        self._show(what, kernels)

    def _profile_prompt(self, tokens: int) -> None:
        row = engine.prompt_row(self.runner, tokens)
        kernels = engine.kernel_times(lambda: self.runner.run([row]), self.device)
        self.report.add(_time(f"prefill {tokens}: kernels", kernels.total_s))
        self._show(f"prefill {tokens}", kernels)

    def _show(self, what: str, kernels: engine.Kernels) -> None:
        self.report.keep(
            {"kernels": what, "ms": [(name, n, 1e3 * seconds) for name, n, seconds in kernels.most]}
        )
        for name, count, seconds in kernels.most[:SHOWN_KERNELS]:
            self.report.say(f"    {1e3 * seconds:7.3f} ms {count:5.0f} x {name[:72]}")

    def section_peer(self) -> None:
        self.drop_runner()
        file = self.scratch / "peer.jsonl"
        most_s = self.budget.within(self.sizes.peer_s)
        for line in peer.run_peer(self.shape_name, str(self.device), file, most_s):
            if "error" in line:
                self.report.say(f"  transformers, {line['way']}, {line['case']}: {line['error']}")
                continue
            what = f"decode {line['case']}: engine" if line["way"] == "continuous" else None
            self.report.add(
                Figure(
                    what=what or f"decode {line['case']}: static batch",
                    unit="ms",
                    peer=1e3 * line["step_s"],
                )
            )

    def section_fp8(self) -> None:
        self.drop_runner()
        runner = random_runner(
            self.shape,
            device=self.device,
            block_tokens=BLOCK_TOKENS,
            weights="fp8",
            kv_dtype="fp8",
        )
        work = model_work(runner)
        self._each(
            [partial(self._decode, runner, work, *case, "fp8 decode") for case in self.sizes.fp8]
        )
        self._profile(runner, work, "fp8 decode", *self.sizes.fp8[-1], engine.GREEDY)
        runner.close()
        self._free()

    def section_http(self) -> None:
        self.drop_runner()
        speeds, sizes, crowd = self.speeds, self.sizes, self.sizes.crowd
        folder, place = self.folder, self.scratch / "node"
        given: dict[str, Any] = {"sizes": sizes, "report": self.report, "budget": self.budget}
        device = str(self.device)
        failures = served.measure(folder, place, device, vocab=self.shape.vocab, **given)
        self._each([partial(self._http_floors, folder, speeds, crowd)])
        if self.budget.left_s > FIRST_START_S:
            self.drop_runner()
            served.measure_first_start(folder, self.scratch / "first", device, **given)
        if failures:
            raise failures[0]

    def _http_floors(self, folder: Path, speeds: Speeds, crowd: int) -> None:
        """The engine without a server, on the same files."""
        sizes = self.sizes
        began = time.perf_counter()
        options = TorchOptions(device=str(self.device))
        runner = load.load_runner(folder, block_tokens=BLOCK_TOKENS, options=options)
        self._runner = runner
        loaded_s = time.perf_counter() - began
        bytes_ = sum(path.stat().st_size for path in folder.iterdir())
        floor_s = bytes_ / speeds.upload_bytes_per_s
        self.report.add(Figure(what="load_runner", unit="s", ours=loaded_s, floor=floor_s))
        self.report.add(Figure(what=served.FIRST_TOKEN, unit="s", floor=floor_s))
        run = engine.engine_run(
            runner,
            prompts=engine.random_prompts(runner, served.ROUNDS * crowd, sizes.crowd_prompt),
            new_tokens=sizes.crowd_output,
            at_once=crowd,
            tokens_per_step=served.TOKENS_PER_STEP,
            most_s=self.budget.within(sizes.engine_s),
            sampling=Sampling(temperature=1.0),
        )
        self.report.add(Figure(what=served.CROWD, unit="tokens/s", floor=run.tokens_per_s))
        work = model_work(runner)
        prompt_s, step_s = (
            self._floor_s(work, *fed_and_seen)
            for fed_and_seen in (
                (sizes.short_prompt, sizes.short_prompt),
                (served.FEW, served.FEW * (sizes.short_prompt + served.FEW_TOKENS // 2)),
            )
        )
        self.report.add(Figure(what=served.TTFT, unit="ms", floor=1e3 * prompt_s))
        self.report.add(Figure(what=served.ITL, unit="ms", floor=1e3 * step_s))


def _roomy() -> str | None:
    """Where 16 GB stay in memory, as a checkpoint does that was read before."""
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free > 40e9:
        return str(shm)
    return None


def _time(what: str, spent_s: float, floor_s: float | None = None, note: str = "") -> Figure:
    floor = None if floor_s is None else 1e3 * floor_s
    return Figure(what=what, unit="ms", ours=1e3 * spent_s, floor=floor, note=note)


def _rate(what: str, unit: str, value: float) -> Figure:
    return Figure(what=what, unit=unit, ours=value)


def run(bench: Bench, names: list[str]) -> bool:
    """Whether all sections went well. One that fails is told of, and the next one runs."""
    is_fine, say = True, bench.report.say
    for name in names:
        left_s, least_s = bench.budget.left_s, bench.sizes.section_s[name]
        if left_s < least_s:
            say(f"{name}: not begun, it takes {least_s:.0f} s and {left_s:.0f} are left")
            continue
        say(name)
        section: Callable[[], None] = getattr(bench, f"section_{name}")
        try:
            section()
        except Exception:  # noqa: BLE001 - the other sections' figures are worth having
            is_fine = False
            say(f"{name} failed:\n{traceback.format_exc()[-3000:]}")
        say(f"  {name} took {left_s - bench.budget.left_s:.1f} s")
    return is_fine


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--out", type=Path, help="file for the figures, one JSON object a line")
    parser.add_argument("--shape", choices=models.SHAPES, default="8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--kernels",
        choices=("auto", "on", "off"),
        default="auto",
        help="off is the engine without its own kernels; on has Triton's interpreter run them on a CPU",
    )
    parser.add_argument("--tests-s", type=float, help="wait so long for the tests of exact")
    parser.add_argument("--peer-s", type=float, help="give transformers so long")
    parser.add_argument("--families", help="of small models in exact, with semicolons")
    parser.add_argument(
        "--most-s",
        type=float,
        default=470.0,
        help="end after this, whatever is left, with its table",
    )
    parser.add_argument("--ahead", type=Path, help="kernels that tests.gpu.ahead has compiled")
    options = parser.parse_args(words)
    names = options.only.split(",")
    assert set(names) <= set(SECTIONS), f"the sections are {', '.join(SECTIONS)}"

    device = torch.device(options.device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    report, budget = Report(options.out, card), Budget(options.most_s)
    timer = end_late(report, budget)
    report.keep({"card": card, "torch": torch.__version__, "words": sys.argv[1:]})
    if options.kernels != "auto":
        load.has_kernels = lambda device: options.kernels == "on"
    if options.kernels == "on" and device.type == "cpu":
        import tests.unit.kernels.interpreting  # noqa: F401 - makes Triton's interpreter fit for it
    report.say(f"{card}, torch {torch.__version__}, {options.shape}")
    if options.ahead and device.type == "cuda":
        report.say(f"kernels that were compiled before: {ahead.fill(options.ahead)}")
    if has_kernels(device):
        tell_compiles(report.say)
    bench = Bench(options.shape, device, report, budget)
    if options.tests_s:
        bench.sizes.tests_s = options.tests_s
    if options.peer_s:
        bench.sizes.peer_s = options.peer_s
    if options.families:
        bench.families = options.families.split(";")
    try:
        is_fine = run(bench, names)
    finally:
        bench.close()
        timer.cancel()
    sys.stdout.write(report.table() + "\n")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
