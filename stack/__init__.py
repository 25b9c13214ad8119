"""The stack around amorsize: the configuration of ``docker-compose.yml``, and ``make stack``.

``prometheus.yml``, ``alertmanager.yml``, ``otel-collector.yml`` and ``jaeger.yml`` are mounted by
the compose file. ``python -m stack`` runs the first two without Docker, as processes of this
machine: ``settings`` replaces their targets, ``servers`` knows the programs, ``processes`` starts
and ends them, ``run`` puts them together. ``kill_worker`` is something to try on either of them.
``compose`` reads the compose file, and ``check`` and ``check_configuration`` hold its rules.
"""
