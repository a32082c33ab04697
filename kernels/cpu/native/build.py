"""Compiles kernels to object files: python -m vllm_nb.kernels.cpu.native.build VARIANT FOLDER KERNEL...

It runs in a process of its own, so that the engine never loads Numba, kernels of several variants do not meet, and two
processes can share the work. Prints each kernel's name when its file is there.
"""

import importlib
import inspect
import os
import sys
from pathlib import Path

import llvmlite.binding as llvm
from numba import njit, types

from vllm_nb.kernels.cpu import isa
from vllm_nb.kernels.cpu.native import emit
from vllm_nb.kernels.cpu.native.kernel import KERNELS, OPTIONS

SOURCES = ("activation", "attention", "embedding", "linear", "norm", "program", "quantize", "rates", "rope", "sampling")

# The C entry point around Numba's own calling convention, which has slots for a result and an exception.
_ENTRY = """
define void @{name}({params}) {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @{inner}(ptr %result, ptr %exception, {args})
  ret void
}}
"""


def compile_kernel(name: str, machine: llvm.TargetMachine) -> bytes:
    """The object file of one kernel, which exports `name`."""
    function = KERNELS[name]()
    count = len(inspect.signature(function).parameters)
    compiled = njit(types.void(*[types.int64] * count), **OPTIONS)(function)
    signature = compiled.signatures[0]
    inner = compiled.overloads[signature].fndesc.llvm_func_name  # type: ignore[attr-defined]
    entry = _ENTRY.format(
        name=name,
        inner=inner,
        params=", ".join(f"i64 %a{n}" for n in range(count)),
        args=", ".join(f"i64 %a{n}" for n in range(count)),
    )
    module = llvm.parse_assembly(compiled.inspect_llvm(signature) + entry)
    for part in module.functions:
        if not part.is_declaration and part.name != name:
            part.linkage = "internal"
    return bytes(machine.emit_object(module))


def target_machine() -> llvm.TargetMachine:
    """For this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="static",
        codemodel="jitdefault",
        jit=True,
    )


def main(variant: str, folder: str, *names: str) -> None:
    for source in SOURCES:
        importlib.import_module(f".{source}", __package__)
    emit.use(isa.named(variant))
    machine = target_machine()
    for name in names:
        path = Path(folder, f"{name}.o")
        partial = path.with_suffix(f".{os.getpid()}")
        compiled = compile_kernel(name, machine)
        try:
            partial.write_bytes(compiled)
        except OSError as error:
            partial.unlink(missing_ok=True)
            sys.exit(f"{path.parent} cannot take the compiled kernels, a few MB: {error.strerror}")
        partial.replace(path)  # whole or not at all: other processes may be looking
        print(name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
