"""Devices to simulate: the makers' figures, and this machine's as measured.

Arithmetic is dense: the data sheets also print twice as much, which only matrices with half of
their elements zero would reach. Links are one way: NVIDIA prints both directions together. `source`
is where the maker prints the figures; so far they were read in others' copies of it only.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One accelerator, or one CPU."""

    name: str
    peak_flop_per_s: dict[str, float]  # by arithmetic: "bf16", "int8", "fp8", "fp32"
    bandwidth_bytes_per_s: float
    memory_bytes: float
    link_bytes_per_s: float  # to another device, one way
    source: str

    def peak(self, arithmetic: str) -> float:
        """FLOP/s (for integers OP/s) of `arithmetic`.

        Raises:
            ValueError: if there is no figure, because the device has no units or none was read.
        """
        if arithmetic not in self.peak_flop_per_s:
            raise ValueError(
                f"There is no figure for {self.name} computing in {arithmetic}, only for "
                f"{', '.join(self.peak_flop_per_s)}: choose one of these. Weights can still be "
                f"stored in another format and are converted as they are read."
            )
        return self.peak_flop_per_s[arithmetic]

    def ridge(self, arithmetic: str = "bf16") -> float:
        """FLOP per byte at which arithmetic and memory take equally long."""
        return self.peak(arithmetic) / self.bandwidth_bytes_per_s


NVIDIA = "https://www.nvidia.com/content/dam/en-zz/Solutions"
# PCIe of the fourth generation with 16 lanes, one way.
PCIE_4 = 32e9

DEVICES = {
    device.name: device
    for device in (
        Device(
            "A100-80GB SXM",
            {"bf16": 312e12, "fp16": 312e12, "int8": 624e12, "fp32": 19.5e12},
            2039e9,
            80e9,
            300e9,
            f"{NVIDIA}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
        ),
        Device(
            "A100-80GB PCIe",
            {"bf16": 312e12, "fp16": 312e12, "int8": 624e12, "fp32": 19.5e12},
            1935e9,
            80e9,
            PCIE_4,
            f"{NVIDIA}/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
        ),
        Device(
            "H100 SXM",
            {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12, "int8": 1979e12},
            3350e9,
            80e9,
            450e9,
            "https://www.nvidia.com/en-us/data-center/h100/",
        ),
        Device(
            "H200 SXM",
            {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12, "int8": 1979e12},
            4800e9,
            141e9,
            450e9,
            "https://www.nvidia.com/en-us/data-center/h200/",
        ),
        Device(
            "L4",
            {"bf16": 121e12, "fp16": 121e12, "fp8": 242.5e12, "int8": 242.5e12},
            300e9,
            24e9,
            PCIE_4,
            "https://www.nvidia.com/en-us/data-center/l4/",
        ),
        Device(
            "L40S",
            {"bf16": 362.05e12, "fp16": 362.05e12, "fp8": 733e12, "int8": 733e12, "fp32": 91.6e12},
            864e9,
            48e9,
            PCIE_4,
            "https://www.nvidia.com/en-us/data-center/l40s/",
        ),
        # No bf16: models are served in fp16.
        Device(
            "T4",
            {"fp16": 65e12, "fp32": 8.1e12},
            320e9,
            16e9,
            PCIE_4 / 2,
            "https://www.nvidia.com/en-us/data-center/tesla-t4/",
        ),
    )
}
