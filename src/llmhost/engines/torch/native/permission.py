"""Whether this process may run what it has written itself.

Hardened services may not (systemd's `MemoryDenyWriteExecute`, SELinux without `execmem`). LLVM does not look at what
the system answers, and the first call of its code would end the process.
"""

import ctypes
import mmap


def may_run_what_it_writes() -> bool:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    mapped = ctypes.c_char.from_buffer(page)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        size, wanted = ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC
        return bool(libc.mprotect(ctypes.c_void_p(ctypes.addressof(mapped)), size, wanted) == 0)
    finally:
        del mapped
        page.close()
