"""A delay queue in the sorted sets of a Redis, without polling.

For those who must not hold messages in the memory of their own processes. Several instances share the
messages of one name; each sends a part, and what one holds when it dies another sends.
`open_redis_delay_queue` opens one. Needs the extra `redis`, and Redis 6.0 or later, with
`maxmemory-policy noeviction`. How safe a message is there says Redis's own `appendfsync`. It talks to one
server; the keys and scripts are such as a Redis Cluster takes, but it does not follow `MOVED`.

The faults of sorted sets that are polled, and what is done about them:

- Big keys bound the data: each shard is bounded (4,000 messages and 8 MB, checked at every put), and there
  may be as many shards as it takes, for they cost nothing while nothing comes due in them.
- Changing the number of shards loses messages: `set_shards` does it while all run; see `layouts`.
- Many shards mean heavy polling, of thousands of pollers that find nothing: nobody polls; see `claims`.
- A lock for each shard, set by everybody all the time: claiming is one atomic script and needs none.
"""

from localdelay.redis_plan.errors import RedisUnreachable
from localdelay.redis_plan.opening import check_url, open_redis_delay_queue
from localdelay.redis_plan.queue import RedisDelayQueue
from localdelay.redis_plan.statistics import RedisStatistics

__all__ = ["RedisDelayQueue", "RedisStatistics", "RedisUnreachable", "check_url", "open_redis_delay_queue"]
