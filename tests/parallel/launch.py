"""Starts a function in several processes, with the environment that torchrun gives its own."""

import multiprocessing
import os
import socket
import sys
import traceback
from dataclasses import dataclass

import torch
import torch.distributed.fsdp  # once here, not in every fork

PATIENCE = 60  # seconds for a process to end


@dataclass
class Ended:
    """How the processes ended, by rank: exit statuses (negative: of a signal), and all that they printed."""

    statuses: list[int]
    outputs: list[str]

    @property
    def printed(self):
        return "".join(self.outputs)


def launch(size, folder, job, *arguments):
    """Runs ``job(*arguments)`` in ``size`` processes; its value is the exit status, None for 0. folder: of the output.

    The processes are forks, which share the imports of this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    files = [folder / f"rank-{rank}.txt" for rank in range(size)]
    started = [
        context.Process(target=_run, args=(rank, size, port, file, job, arguments)) for rank, file in enumerate(files)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
    return Ended([process.exitcode for process in started], [file.read_text() for file in files])


def _run(rank, size, port, file, job, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)  # the threads of the parent are not in a fork
    output = file.open("w", buffering=1)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    try:
        status = job(*arguments)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    output.flush()
    os._exit(status or 0)
