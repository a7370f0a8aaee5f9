"""Reads a pickle as data. Nothing in it is imported, called or given attributes, whatever it asks for.

A pickle is a program for a stack machine, and this is such a machine with the dangerous half left out. A
global is looked up in a table of the caller's; one that is not there, and all that is built from it, is
`INERT`. What is left are numbers, text, tuples, lists, dicts with text for keys, and what the caller's
functions make of their arguments. Every step takes little time and memory, and there are no more steps than
the size of the file warrants, so that a small file cannot grow into a large object; claims about sizes and
memo places allocate nothing.
"""

import mmap
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, Final, cast

from ldm.errors import InputError
from ldm.weights.bounded import Bounded


class Inert:
    """Stands for whatever has no meaning here: it swallows construction, state, items, and keeps nothing."""


INERT: Final = Inert()

# A checkpoint takes about 45 steps a tensor; one of Stable Diffusion with its optimizer's state, 200,000 in
# all. A step may leave some 100 bytes in memory, so that a long pickle has to be a small part of its file.
FREE_STEPS: Final = 200_000
BYTES_A_STEP: Final = 80
MAX_STEPS: Final = 2_000_000

# Text and bytes longer than any name in a checkpoint say nothing about tensors.
LONGEST: Final = 4096

Meanings = Mapping[tuple[str, str], object]
Persistent = Callable[[object], object]


def read_pickle(buffer: mmap.mmap, meanings: Meanings, persistent: Persistent) -> Any:
    """The object that the pickle at the mapped file's position describes; the file is left right behind it.

    `meanings` maps a global's (module, name) to a plain value, or to a function that is given the tuple of
    arguments when the pickle calls that global. `persistent` is given each persistent id. Both may raise
    ValueError. Raises InputError when the pickle breaks off or contradicts itself.
    """
    machine = _Machine(meanings, persistent)
    start = buffer.tell()
    most = min(MAX_STEPS, FREE_STEPS + len(buffer) // BYTES_A_STEP)
    stream = cast(IO[bytes], Bounded(buffer))
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if steps == most:
                raise InputError(f"its pickle goes on for over {most:,} steps, which no checkpoint needs")
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except InputError:
        raise
    except (ValueError, IndexError, KeyError):
        raise InputError(f"its pickle (at byte {start}) breaks off or contradicts itself") from None


class _Machine:
    def __init__(self, meanings: Meanings, persistent: Persistent) -> None:
        self.meanings = meanings
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # one stack set aside for each open mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP" | "READONLY_BUFFER":
                pass

            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.push(self.memo[argument])

            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.pop()
            case "POP" | "POP_MARK" | "ADDITEMS":
                self.items()
            case "DUP":
                self.push(self.stack[-1])

            case "EMPTY_TUPLE":
                self.push(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(name[-1])
                self.stack[-size:] = [tuple(self.stack[-size:])]
            case "TUPLE":
                self.push(tuple(self.items()))

            case "EMPTY_LIST":
                self.push([])
            case "LIST":
                self.push(self.items())
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS":
                self.extend(self.items())

            case "EMPTY_DICT":
                self.push({})
            case "DICT":
                items = self.items()
                self.push({})
                self.update(items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.items())

            case "GLOBAL":
                module, _, qualified_name = argument.partition(" ")
                self.push(self.meaning(module, qualified_name))
            case "STACK_GLOBAL":
                qualified_name, module = self.pop(), self.pop()
                self.push(self.meaning(module, qualified_name))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                meant = callable(function) and type(arguments) is tuple
                self.push(function(arguments) if meant else INERT)
            case "PERSID":
                self.push(self.persistent(argument))
            case "BINPERSID":
                self.push(self.persistent(self.pop()))

            # Objects made in any other way, and the state of every object, say nothing about tensors.
            case "NEWOBJ":
                self.stack[-2:] = [INERT]
            case "NEWOBJ_EX":
                self.stack[-3:] = [INERT]
            case "INST" | "OBJ" | "FROZENSET":
                self.items()
                self.push(INERT)
            case "EMPTY_SET" | "NEXT_BUFFER" | "EXT1" | "EXT2" | "EXT4":
                self.push(INERT)
            case "BUILD":
                self.pop()

            # The rest are literals: truth values, None, and numbers, text and bytes of every width.
            case "NEWTRUE" | "NEWFALSE":
                self.push(name == "NEWTRUE")
            case _:
                long = isinstance(argument, str | bytes | bytearray) and len(argument) > LONGEST
                self.push(INERT if long else argument)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def items(self) -> list[Any]:
        """Takes all that was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)

    def update(self, keys_and_values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
                # Keys are text only: other hashes can be chosen to collide, or to take forever.
                if type(key) is str:
                    target[key] = value

    def meaning(self, module: object, name: object) -> object:
        if type(module) is str and type(name) is str:
            return self.meanings.get((module, name), INERT)
        return INERT
