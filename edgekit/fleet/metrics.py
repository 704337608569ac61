"""Metrics: the coordinator's own counters, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgekit.fleet import overview, store
from edgekit.fleet.coordinator import Coordinator


def registry_of(coordinator: Coordinator) -> CollectorRegistry:
    """A registry that reads the coordinator at each scrape."""
    registry = CollectorRegistry()
    registry.register(_Coordinator(coordinator))
    return registry


class _Coordinator(Collector):
    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterator[Metric]:
        yield from self._of_ingest()
        yield from self._of_store()

    def _of_ingest(self) -> Iterator[Metric]:
        ingest = self._coordinator.ingest
        counted = CounterMetricFamily(
            "edgekit_messages", "Messages of devices, by what became of them", labels=["outcome"]
        )
        for outcome in ("stored", "duplicates", "malformed", "too_far"):
            counted.add_metric([outcome], getattr(ingest.counts, outcome))
        yield counted
        yield CounterMetricFamily(
            "edgekit_acks", "Acknowledgements handed to the link", ingest.counts.acks
        )
        yield GaugeMetricFamily(
            "edgekit_messages_queued", "Messages that wait for their commit", ingest.queued
        )
        yield GaugeMetricFamily(
            "edgekit_link_up", "Whether the broker is connected", int(self._coordinator.connected)
        )

    def _of_store(self) -> Iterator[Metric]:
        with self._coordinator.store.read() as connection:
            known, online = overview.count_devices(connection)
            table = store.rollouts
            states = connection.execute(
                sa.select(table.c.state, sa.func.count()).group_by(table.c.state)
            ).all()
        yield GaugeMetricFamily("edgekit_devices", "Devices that ever reported", known)
        yield GaugeMetricFamily("edgekit_devices_online", "Devices that are connected", online)
        rollouts = GaugeMetricFamily("edgekit_rollouts", "Rollouts, by state", labels=["state"])
        for state, number in states:
            rollouts.add_metric([state], number)
        yield rollouts
