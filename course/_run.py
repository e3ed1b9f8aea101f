"""Runs a lesson as a script, and notes which files it rests on: `_run.py LESSON NOTED [FIGURES]`.

Of the package and its experiments, files of which a function was called; of records and tables, files that were read.
"""

import json
import runpy
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # the lesson's own choice would open windows

import matplotlib.pyplot as plt

import arch_jax


def main() -> None:
    """Runs the lesson."""
    lesson, noted = Path(sys.argv[1]), Path(sys.argv[2])
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else None

    def show(*_, **__) -> None:
        """Draws what the lesson shows, so that what can't be drawn fails, and keeps it where a folder is given."""
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.canvas.draw()
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(
                    folder / f"{lesson.stem}_{len(list(folder.glob(f'{lesson.stem}_*.png'))):02}.png", dpi=110
                )
        plt.close("all")

    plt.show = show
    with arch_jax.executed_code() as code:
        runpy.run_path(str(lesson), run_name="__main__")
    show()
    facts = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "device": arch_jax.device(), "code": code.hashes()}
    noted.write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
