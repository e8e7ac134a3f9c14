"""The benchmark behind `bytewax-jetstream bench`: every strategy beside every other, in one run.

    cases ─► runner ─► child, one a case ─► strategies ─► broker
               │          meter: clock, CPU, RSS, threads, tasks, sockets, inside the child
               └─► brokers: servers, streams, and a second connection that counts what is stored
    rounds ─► figures ─► report, plot

A case's rounds all run in one child process, which has published before; the cases of a scenario
take turns round by round, so that what the machine does to one it does to the others.
"""
