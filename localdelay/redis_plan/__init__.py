"""A delay queue in the sorted sets of a Redis, without polling.

For those who must not hold messages in the memory of their own processes. Several instances share the
messages of one name; each sends a part, and what one holds when it dies another sends.
`open_redis_delay_queue` opens one. Needs the extra `redis`, and Redis 6.0 or later, with
`maxmemory-policy noeviction`. How safe a message is there says Redis's own `appendfsync`.

What sorted sets that are polled lack: big keys bound the data (here each shard is bounded, and there may be
as many as it takes, for they cost nothing while nothing comes due in them); changing the number of shards
loses messages (`set_shards` does it while all run); thousands of pollers find nothing (nobody polls: see
`claims`); everybody sets a lock for each shard all the time (claiming is one atomic script and needs none).
"""

from localdelay.redis_plan.link import RedisUnreachable
from localdelay.redis_plan.opening import check_url, open_redis_delay_queue
from localdelay.redis_plan.queue import RedisDelayQueue
from localdelay.redis_plan.settings import RedisStatistics, RedisTuning

__all__ = [
    "RedisDelayQueue",
    "RedisStatistics",
    "RedisTuning",
    "RedisUnreachable",
    "check_url",
    "open_redis_delay_queue",
]
