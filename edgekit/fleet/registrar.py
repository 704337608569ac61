"""Registrar: the coordinator's view of who is enrolled, and what it does when that changes.

The record may be changed by commands in other processes; `refresh` sees that within a second. The
broker is what keeps devices to their topics; here a device that was revoked is not listened to
either, should its broker be late.
"""

from __future__ import annotations

from edgekit.clock import Clock
from edgekit.fleet import broker_files, inventory, rights
from edgekit.fleet.enrolment import Office
from edgekit.fleet.folder import FleetFolder
from edgekit.fleet.members import Members
from edgekit.fleet.store import Store
from edgekit.signing import PublicKey
from edgekit.topics import DeviceTopic, UpdateTopic


class Registrar:
    """Who is enrolled in a fleet, kept in step with its broker's files.

    Raises:
        FleetError, ConfigError: the folder is not a whole fleet.
        StorageError: it cannot be written.
    """

    def __init__(self, folder: FleetFolder, *, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._members = Members(folder.members)
        self._version = 0
        self._names: frozenset[tuple[str, str]] = frozenset()
        self._is_behind = False
        self._settled: frozenset[tuple[str, str]] | None = None
        self.office = Office(folder, self._members, clock=clock, changed=self._changed)
        self.renew_services()
        self._changed()

    def has(self, topic: DeviceTopic | UpdateTopic) -> bool:
        """Whether the device of a topic is enrolled."""
        return (topic.site, topic.device) in self._names

    def keys(self, site: str, device: str) -> list[PublicKey]:
        """Whose signature counts as a device's."""
        return self._members.keys(site, device, now_ms=self._clock.now_ms())

    def refresh(self, store: Store) -> None:
        """Read the record again if it was changed; what others changed they told the broker.

        Who left is revoked in the inventory from then on, and offline: of the broker's word for it
        nothing is heard. Files of the broker that a full disk kept from being written are written
        now.
        """
        if self._is_behind:
            self._changed()
        version = self._read_version()
        if version != self._version:
            self._version = version
            self._names = self._read_names()
        names = self._names  # a device may be let in by another thread meanwhile
        if names != self._settled:
            enrolled = {inventory.key(site, device) for site, device in names}
            ever = {inventory.key(one.site, one.device) for one in self._members.every()}
            with store.write() as connection:
                rights.settle(connection, enrolled=enrolled, ever=ever)
            self._settled = names

    def renew_services(self) -> None:
        """Make the certificates of coordinator and broker anew where they near their end."""
        broker_files.renew_services(self._folder, hosts=(), clock=self._clock)

    def _changed(self) -> None:
        self._version = self._read_version()
        self._names = self._read_names()
        self._is_behind = True
        broker_files.write_users(self._folder, self._members, clock=self._clock)
        self._is_behind = False

    def _read_names(self) -> frozenset[tuple[str, str]]:
        return frozenset((subject.site, subject.device) for subject in self._members.current())

    def _read_version(self) -> int:
        return self._members.version()
