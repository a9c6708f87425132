"""Write the rank table of this server, for scripts/run_distribute_train.sh."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

from src.common.cli import ArgumentParser, UsageError, positive_int, run_cli
from src.launch.rank_table import NPU_CONFIGURATION, find_address, read_device_addresses, write_rank_table


def main(argv=None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--device_num", type=positive_int, default=8, help="how many devices")
    parser.add_argument("--first_device", type=int, default=0, help="number of the first device")
    parser.add_argument("--server_id", help="address of this server; found when left out")
    parser.add_argument("--hccn_conf", default=NPU_CONFIGURATION, help="NPU configuration with the device addresses")
    parser.add_argument("--out", help="file to write; rank_table_[DEVICE_NUM]pcs.json when left out")
    arguments = parser.parse_args(argv)
    if arguments.first_device < 0:
        raise UsageError(f"--first_device is {arguments.first_device}, not a whole number of at least 0")
    device_ids = list(range(arguments.first_device, arguments.first_device + arguments.device_num))
    addresses = read_device_addresses(arguments.hccn_conf)
    missing = [device for device in device_ids if device not in addresses]
    if addresses and missing:
        raise UsageError(f"{arguments.hccn_conf} gives no address for device {missing[0]}; --device_num is too large")
    out = arguments.out or f"rank_table_{arguments.device_num}pcs.json"
    write_rank_table(out, arguments.server_id or find_address(), device_ids, addresses)
    source = f"addresses from {arguments.hccn_conf}" if addresses else "no NPU configuration here: for ranks on the CPU"
    print(f"wrote {out}: {arguments.device_num} ranks, {source}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
