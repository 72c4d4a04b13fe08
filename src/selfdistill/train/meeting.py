"""Where the processes of one machine meet: on loopback, or the whole network could talk to them."""

from __future__ import annotations

import os
import socket
import sys

import torch
import torch.distributed as dist


def meet_on_loopback(devices: int | str) -> object:
    """A meeting point at 127.0.0.1 for the processes that Fabric will start; none for one process, or for those that torchrun, SLURM
    or Fabric started already and told where to meet. It lasts as long as what is returned.

    Left to itself PyTorch's rank 0 listens on all interfaces (`TCPStore`), without a password; a process that finds a store there
    already, torchrun's agent's, connects to it instead.
    """
    count = torch.cuda.device_count() if devices == "auto" else int(devices)
    if count < 2 or any(name in os.environ for name in ("LOCAL_RANK", "MASTER_ADDR", "SLURM_NTASKS")):
        return None
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    return store
