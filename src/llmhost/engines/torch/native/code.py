"""Words to write a function for LLVM with: loops, places in memory, and vectors of 16 float32 numbers.

LLVM cuts a vector into as many registers as this CPU needs for it. Sums are taken in an order that is written here, so
a result is the same on every CPU with fused multiplication and addition, and LLVM may not change it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

LANES = 16
INT16, INT32, INT64 = (ir.IntType(bits) for bits in (16, 32, 64))
FLOAT = ir.FloatType()
POINTER = ir.PointerType()
FLOATS = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(INT32, LANES)

Value = Any
"""Of a function that is being written: a number, an address or a vector that it will have."""

_LOG2_E = 1.44269504088896341
_LN2 = (0.693359375, -2.12194440e-4)
"""Its upper bits, which are exact, and the rest."""
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
"""exp(r) = 1 + r + r * r * (...) for |r| < ln(2) / 2: the coefficients of the Cephes library, highest first."""
_NO_MORE = -104.0
"""float32 has no number as small as its exponential."""


class Code:
    """A function that takes one address and returns nothing, while it is written."""

    def __init__(self, name: str) -> None:
        self.module = ir.Module(name)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), name)
        self.b = ir.IRBuilder(self.function.append_basic_block())
        self._declared: dict[str, ir.Function] = {}

    # Numbers and places

    def whole(self, number: int) -> Value:
        return ir.Constant(INT64, number)

    def floats(self, number: float) -> Value:
        return ir.Constant(FLOATS, [number] * LANES)

    def ints(self, number: int) -> Value:
        return ir.Constant(INTS, [number] * LANES)

    def least(self, one: Value, other: Value) -> Value:
        return self.b.select(self.b.icmp_signed("<", one, other), one, other)

    def room(self, vectors: Value) -> Value:
        """Of so many vectors, that lives as long as the call."""
        address = self.b.alloca(FLOATS, vectors)
        address.type = POINTER  # any numbers may be put there
        return address

    def place(self, start: Value, at: Value, kind: Value = FLOAT) -> Value:
        return self.b.gep(start, [at], source_etype=kind)

    def load(self, start: Value, at: Value, kind: Value) -> Value:
        return self.b.load(self.place(start, at, kind), typ=kind)

    def store(self, value: Value, start: Value, at: Value, kind: Value) -> None:
        self.b.store(value, self.place(start, at, kind))

    def load_floats(self, start: Value, at: Value) -> Value:
        """16 numbers from the `at`th on."""
        return self.b.load(self.place(start, at), typ=FLOATS, align=4)

    def store_floats(self, value: Value, start: Value, at: Value) -> None:
        self.b.store(value, self.place(start, at), align=4)

    def widened(self, start: Value, at: Value, kind: Value) -> Value:
        """16 numbers of a 16-bit `kind`, float16 or (as INT16) bfloat16, as float32."""
        raw = self.b.load(self.place(start, at, kind), typ=ir.VectorType(kind, LANES), align=2)
        if kind is INT16:  # bfloat16 is the upper half of float32
            return self.b.bitcast(self.b.shl(self.b.zext(raw, INTS), self.ints(16)), FLOATS)
        return self.b.fpext(raw, FLOATS)

    def soon(self, address: Value) -> None:
        """What is at `address` will be read. It may be any number: nothing comes of a wrong one."""
        kinds = [POINTER, INT32, INT32, INT32]
        hint = self._declare("llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), kinds))
        read, keep, data = (ir.Constant(INT32, number) for number in (0, 3, 1))
        self.b.call(hint, [address, read, keep, data])

    # Loops

    @contextmanager
    def loop(self, first: Value, last: Value, step: int = 1) -> Iterator[Value]:
        """What is written within runs for each number from `first` to `last`, exclusive."""
        with self.carrying(first, last, (), step) as (at, _, _):
            yield at

    @contextmanager
    def carrying(
        self, first: Value, last: Value, starts: Sequence[Value], step: int = 1
    ) -> Iterator[tuple[Value, list[Value], list[Value]]]:
        """As `loop`, with values that stay in registers from turn to turn.

        Gives the number, the values (after the loop: what became of them), and a list to be filled with the next ones.
        """
        before = self.b.block
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        self.b.branch(head)
        self.b.position_at_end(head)
        at = self.b.phi(INT64)
        carried = [self.b.phi(start.type) for start in starts]
        following: list[Value] = []
        self.b.cbranch(self.b.icmp_signed("<", at, last), body, after)
        self.b.position_at_end(body)
        yield at, carried, following
        for one, start, then in zip(
            (at, *carried),
            (first, *starts),
            (self.b.add(at, self.whole(step)), *following),
            strict=True,
        ):
            one.add_incoming(start, before)
            one.add_incoming(then, self.b.block)
        self.b.branch(head)
        self.b.position_at_end(after)

    @contextmanager
    def each_task(self, counter: Value, tasks: Value) -> Iterator[Value]:
        """What is written within runs for each number below `tasks`, once for all threads that share `counter`."""
        head, body, after = (self.function.append_basic_block() for _ in range(3))
        self.b.branch(head)
        self.b.position_at_end(head)
        task = self.b.atomic_rmw("add", counter, self.whole(1), "monotonic")
        self.b.cbranch(self.b.icmp_signed("<", task, tasks), body, after)
        self.b.position_at_end(body)
        yield task
        self.b.branch(head)
        self.b.position_at_end(after)

    # Vectors

    def spread(self, number: Value) -> Value:
        """A vector of it alone."""
        kind = ir.VectorType(number.type, LANES)
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.b.insert_element(nothing, number, ir.Constant(INT32, 0))
        return self.b.shuffle_vector(one, nothing, self.ints(0))

    def at_lane(self, vector: Value, lane: int) -> Value:
        """A vector of its number there alone."""
        return self._shuffled(vector, vector, [lane] * LANES)

    def with_lane(self, vector: Value, lane: int, other: Value) -> Value:
        """The vector, with the other's number there."""
        return self._shuffled(vector, other, [i + LANES * (i == lane) for i in range(LANES)])

    def fma(self, left: Value, right: Value, more: Value) -> Value:
        kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
        return self.b.call(self._declare(f"llvm.fma.v{LANES}f32", kind), [left, right, more])

    def larger(self, left: Value, right: Value) -> Value:
        """Any of the two where one is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", left, right), left, right)

    def over_lanes(self, vector: Value, join: Callable[[Value, Value], Value]) -> Value:
        """All 16 numbers joined, at every place."""
        distance = LANES // 2
        while distance:
            other = [lane ^ distance for lane in range(LANES)]
            vector = join(vector, self._shuffled(vector, vector, other))
            distance //= 2
        return vector

    def sums(self, vectors: Sequence[Value]) -> Value:
        """A vector of the sums of each of 16 vectors."""
        while len(vectors) > 1:
            half, width = len(vectors) // 2, len(vectors) // 2
            starts = range(0, LANES, len(vectors))
            low = [s + lane for s in starts for lane in _beside(width)]
            high = [lane + width for lane in low]
            vectors = [
                self.b.fadd(self._shuffled(x, y, low), self._shuffled(x, y, high))
                for x, y in zip(vectors[:half], vectors[half:], strict=True)
            ]
        return vectors[0]

    def exp(self, power: Value) -> Value:
        """Of numbers that are at most 0, or NaN, within a few units of the last bit."""
        too_small = self.b.fcmp_ordered("<", power, self.floats(_NO_MORE))
        power = self.b.select(too_small, self.floats(_NO_MORE), power)
        rint = self._declare(f"llvm.rint.v{LANES}f32", ir.FunctionType(FLOATS, [FLOATS]))
        twos = self.b.call(rint, [self.b.fmul(power, self.floats(_LOG2_E))])
        rest = power
        for part in _LN2:
            rest = self.fma(twos, self.floats(-part), rest)
        series = self.floats(_EXP[0])
        for coefficient in _EXP[1:]:
            series = self.fma(series, rest, self.floats(coefficient))
        series = self.fma(self.b.fmul(series, rest), rest, self.b.fadd(rest, self.floats(1.0)))
        is_number = self.b.fcmp_ordered("ord", twos, twos)
        count = self.b.fptosi(self.b.select(is_number, twos, self.floats(0.0)), INTS)
        # In two steps, as one has no numbers below 2 ** -126.
        some = self.b.ashr(count, self.ints(1))
        return self.b.fmul(
            self.b.fmul(series, self._power_of_two(some)),
            self._power_of_two(self.b.sub(count, some)),
        )

    def tanh(self, number: Value) -> Value:
        """Within 1e-7, or NaN."""
        kind = ir.FunctionType(FLOATS, [FLOATS])
        size = self.b.call(self._declare(f"llvm.fabs.v{LANES}f32", kind), [number])
        shrunk = self.exp(self.b.fmul(size, self.floats(-2.0)))
        one = self.floats(1.0)
        positive = self.b.fdiv(self.b.fsub(one, shrunk), self.b.fadd(one, shrunk))
        below = self.b.fcmp_ordered("<", number, self.floats(0.0))
        return self.b.select(below, self.b.fneg(positive), positive)

    def _power_of_two(self, exponent: Value) -> Value:
        bits = self.b.shl(self.b.add(exponent, self.ints(127)), self.ints(23))
        return self.b.bitcast(bits, FLOATS)

    def _shuffled(self, left: Value, right: Value, lanes: Sequence[int]) -> Value:
        return self.b.shuffle_vector(left, right, ir.Constant(INTS, list(lanes)))

    def _declare(self, name: str, kind: Value) -> Value:
        if name not in self._declared:
            self._declared[name] = ir.Function(self.module, kind, name)
        return self._declared[name]


def _beside(width: int) -> list[int]:
    """The first `width` lanes of a vector, and as many of a second one."""
    return [start + lane for start in (0, LANES) for lane in range(width)]
