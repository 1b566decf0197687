"""Print a calendar of celestial events: ``python -m kexue.sky 2027 --zone Asia/Shanghai --place 39.9,116.4 --ics sky.ics``."""

import argparse
import sys
from pathlib import Path

from kexue.sky.calendar import calendar, to_csv, to_ics, to_text
from kexue.sky.kinds import GROUPS
from kexue.sky.observer import place_of

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit status: 0, or 2 with one line on stderr if a request is refused."""
    parser = argparse.ArgumentParser(prog="python -m kexue.sky", description="Celestial events of one year in local time")
    parser.add_argument("year", type=int, help="civil year, 1900 to 2052")
    parser.add_argument("--zone", default="Asia/Shanghai", help="IANA time zone (default: %(default)s)")
    parser.add_argument("--place", metavar="LAT,LON[,ELEV]", help="also what this place sees: degrees north and east, metres")
    parser.add_argument("--kinds", help=f"groups separated by commas, of: {', '.join(GROUPS)}")
    parser.add_argument("--ics", type=Path, metavar="FILE", help="write an iCalendar file")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write comma-separated values")
    options = parser.parse_args(_joined(arguments))
    kinds = None if options.kinds is None else [name.strip() for name in options.kinds.split(",")]
    try:
        place = None if options.place is None else place_of(options.place)
        events = calendar(options.year, options.zone, kinds=kinds, place=place)
        for path, write in ((options.ics, to_ics), (options.csv, lambda rows: to_csv(rows, options.zone))):
            if path is not None:
                path.write_text(write(events), encoding="utf-8", newline="")
    except (ValueError, ImportError, OSError) as error:
        print(f"kexue.sky: {error}", file=sys.stderr)
        return 2
    print(to_text(events, options.zone), end="")
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """Join ``--place`` and what follows: argparse takes a southern latitude, which begins with a minus sign, for an option."""
    after = [*arguments[1:], ""]
    joined = [f"--place={b}" if a == "--place" and b else a for a, b in zip(arguments, after, strict=True)]
    return [a for i, a in enumerate(joined) if i == 0 or arguments[i - 1] != "--place"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
