"""A whole system under a seeded storm of kills, stops and restarts, and a checker that stands outside all of it.

`python -m tests.chaos --minutes 30 --seed 7 --pulsar real`: two nodes, two gateways and a broker serve a steady load
while they are killed; at the end each request must have had exactly one final answer and a usage record, each slot must
be free again and no process be left. tests/acceptance/test_chaos.py runs it for less than a minute on either broker.
"""
