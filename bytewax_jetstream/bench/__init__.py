"""The benchmark behind `bytewax-jetstream bench`: it runs all strategies side by side.

    cases ─► runner ─► child, one per case ─► strategies ─► broker
               │          meter: clock, CPU, RSS, threads, tasks, sockets, inside the child
               └─► brokers: servers, streams, and a second connection that counts what is stored
    rounds ─► results ─► figures ─► tables, pages, plot

All rounds of a case run in one child process, which has published before the first of them. The
cases of a scenario take turns, round by round, so that a change of the machine affects all of them.

"The report" is the performance report whose claims the benchmark checks
(`tests/benchmark/README.md`).
"""
