"""Two kernels on one core, of which one grants and the other maps."""

from tests.kernel.guests import BareKernel, bare_machine


class Pair:
    """Two kernels on one machine."""

    def __init__(self) -> None:
        machine = bare_machine()
        self.granter = BareKernel(machine, pages=1024)
        self.user = BareKernel(machine, pages=64)
