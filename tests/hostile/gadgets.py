"""Pickles that run code: the tricks known from public reports."""

import marshal
from pathlib import Path

from tests.hostile.files import a_global, binary, call, literal, stack_global


def gadgets(folder: Path) -> dict[str, bytes]:
    """Pickles, less their stop, that create folder / "canary" when a real unpickler runs them."""
    canary = str(folder / "canary")
    touch = literal(f"touch {canary}")
    payload = f"open({canary!r}, 'w').close()"
    code = literal(payload)
    system, evaluate = a_global("os", "system"), a_global("builtins", "eval")

    def instance(method: str, function: bytes) -> bytes:
        """An object of a new class that has a foreign function for a method."""
        body = b"}" + literal(method) + function + b"s"
        return call(a_global("builtins", "type"), literal("X"), literal(()), body) + b")\x81"

    lazily = a_global("builtins", "map") + b"(" + evaluate + b"]" + code + b"at\x81"
    imported = call(a_global("builtins", "__import__"), literal("os"))
    spawned = call(
        a_global("multiprocessing.util", "spawnv_passfds"),
        binary(b"/usr/bin/touch"), literal(["touch", canary]), literal(()),
    )  # fmt: skip
    return {
        "REDUCE of os.system": call(system, touch),
        "REDUCE of eval": call(evaluate, code),
        "REDUCE of exec": call(a_global("builtins", "exec"), code),
        "REDUCE of open": call(a_global("io", "open"), literal(canary), literal("w")),
        "a class that opens a file": call(a_global("logging", "FileHandler"), literal(canary)),
        "functools.partial of eval": call(call(a_global("functools", "partial"), evaluate, code)),
        "getattr of __import__": call(
            call(a_global("builtins", "getattr"), imported, literal("system")), touch
        ),
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(" + system + touch + b"o",
        "NEWOBJ": a_global("builtins", "tuple") + lazily + b"\x85\x81",
        "NEWOBJ_EX": a_global("builtins", "tuple") + lazily + b"\x85}\x92",
        "dotted STACK_GLOBAL": call(stack_global("logging", "os.system"), touch),
        "dunder STACK_GLOBAL": call(stack_global("builtins", "print.__self__.eval"), code),
        "method by STACK_GLOBAL": call(
            stack_global("pathlib", "Path.touch"), call(a_global("pathlib", "Path"), literal(canary))
        ),
        "BUILD of __setstate__": instance("__setstate__", system) + touch + b"b",
        "APPEND to append": instance("append", system) + touch + b"a",
        "SETITEM to __setitem__": instance("__setitem__", evaluate) + code + b"}s",
        "persistent id": call(system, touch) + b"Q",
        "memo": system + b"q\x07" + b"0" + call(b"h\x07", touch),
        "dict key": b"}" + call(system, touch) + b"Ns",
        "pickle in a pickle": call(
            a_global("_pickle", "loads"), binary(b"\x80\x04" + call(system, touch) + b".")
        ),
        "subprocess": call(a_global("subprocess", "getoutput"), touch),
        "torch.utils.collect_env": call(a_global("torch.utils.collect_env", "run"), touch),
        "multiprocessing.util": call(a_global("os", "waitpid"), spawned, literal(0)),
        "os.system by its own name": call(a_global("posix", "system"), touch),
        "dotted __call__": call(stack_global("os", "system.__call__"), touch),
        "dotted __class__": call(stack_global("builtins", "print.__class__.__call__"), system, touch),
        "nested REDUCE": call(
            a_global("builtins", "tuple"), call(a_global("builtins", "map"), system, b"(" + touch + b"t")
        ),
        "functools.reduce": call(
            call(
                a_global("functools", "reduce"),
                a_global("builtins", "getattr"),
                b"(" + imported + literal("system") + b"t",
            ),
            touch,
        ),
        "operator.methodcaller": call(
            call(a_global("operator", "methodcaller"), literal("system"), touch), imported
        ),
        "operator.attrgetter": call(
            call(call(a_global("operator", "attrgetter"), literal("system")), imported), touch
        ),
        "importlib": call(
            call(
                a_global("builtins", "getattr"),
                call(a_global("importlib", "import_module"), literal("os")),
                literal("system"),
            ),
            touch,
        ),
        "BUILD of attributes": instance("__setattr__", evaluate) + b"N}" + code + b"Ns\x86b",
        "marshalled code": call(
            call(
                a_global("types", "FunctionType"),
                call(a_global("marshal", "loads"), binary(marshal.dumps(compile(payload, "", "exec")))),
                literal({}),
            )
        ),
        "timeit": call(
            a_global("timeit", "timeit"),
            literal("pass"),
            code,
            a_global("time", "perf_counter"),
            literal(1),
        ),
        "profiler": call(a_global("profile", "run"), code, literal(str(folder / "profile"))),
        "pydoc": call(a_global("pydoc", "tempfilepager"), literal(""), literal(f"touch {canary};")),
        "numpy": call(a_global("numpy.testing._private.utils", "runstring"), code, literal({})),
        "torch's own exec": call(
            a_global("torch.jit.unsupported_tensor_ops", "execWrapper"), code, literal({}), literal({})
        ),
        "a file copied": call(
            a_global("shutil", "copyfile"), literal(str(folder / "script.py")), literal(canary)
        ),
        "a file moved": call(a_global("os", "rename"), literal(str(folder / "script.py")), literal(canary)),
        "a link": call(a_global("os", "symlink"), literal(str(folder / "script.py")), literal(canary)),
        "a folder": call(a_global("os", "mkdir"), literal(canary)),
        "runpy": call(a_global("runpy", "run_path"), literal(str(folder / "script.py"))),
        "torch.hub": call(a_global("torch.hub", "_load_local"), literal(str(folder)), literal("entry")),
    }


TRICKS = sorted(gadgets(Path()))
