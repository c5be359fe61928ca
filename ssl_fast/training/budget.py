"""Time budget of a run: progress by steps or by time, and the line about a run that does not fit into its minutes."""

import math

# Fraction of a time budget that passes before lateness counts: slow first steps must not change a run that is in time.
GRACE = 0.1
# The speed of a run is measured after its first PACE_AFTER steps, over PACE_STEPS steps and PACE_SECONDS or more.
PACE_AFTER, PACE_STEPS, PACE_SECONDS = 5, 20, 3.0


def progress_of(step: int, steps: int, seconds: float = 0.0, budget: float | None = None) -> float:
    """Fraction of a run that is over, in [0, 1]: by steps, or by time where a budget of seconds leaves it behind.

    max(step / steps, (seconds - g) / (budget - g)) with g a tenth of the budget: a run that keeps the pace of its
    budget is driven by its steps alone, and so is the same every time; a slower one ends on time, all schedules over.
    """
    done = step / steps
    if budget is not None:
        grace = GRACE * budget
        done = max(done, (seconds - grace) / (budget - grace))
    return min(1.0, done)


def pace(steps: int, planned: int, seconds: float, speed: float, minutes: float, shortens: bool) -> str | None:
    """A line about a run that does not fit into `minutes`; None for one that does, or that is past them.

    seconds: of the `steps` so far. speed: steps a second. shortens: `minutes` end the run, and do not only say how long
    one takes as a rule.
    """
    whole = math.ceil((seconds + (planned - steps) / speed) / 60)
    fitting = steps + int((60 * minutes - seconds) * speed)
    if fitting >= planned or seconds >= 60 * minutes:
        return None
    then = f"--minutes {whole} would train it fully"
    if not shortens:
        about = "a minute" if whole == 1 else f"{whole} minutes"
        then = f"going on to the full length, about {about} (--minutes {minutes:g} would shorten it)"
    return f"at this speed {fitting:,} of {planned:,} steps fit into {minutes:g} minutes; {then}"
