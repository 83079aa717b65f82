"""What a Redis server does for the store in one go: all of it, or nothing.

Each is called with KEYS: a user's hash, his events, the indices of when users changed and of when
they are over; and with ARGV: the user, then what stands above it.
"""

READ = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
return {redis.call('HMGET', KEYS[1], 'version', 'told', 'changed', 'model', 'made', 'state'),
        redis.call('LRANGE', KEYS[2], 0, -1)}
"""
# if_version or '', whether anew, told, kept, ttl in ms or '', events. The first write is one that a
# server without room refuses; it would refuse none after another.
CHANGE = (
    """
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= version then return version end
redis.call('HINCRBY', KEYS[1], 'version', 1)
if ARGV[3] == '1' or version == 0 then
  redis.call('DEL', KEYS[2])
  redis.call('HDEL', KEYS[1], 'told', 'model', 'made', 'state')
end
redis.call('HINCRBY', KEYS[1], 'told', ARGV[4])
for nth = 7, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[nth]) end
redis.call('LTRIM', KEYS[2], math.max(0, redis.call('LLEN', KEYS[2]) - ARGV[5]), -1)
local seconds, micros = unpack(redis.call('TIME'))
local changed = seconds .. '.' .. string.format('%06d', micros)
redis.call('HSET', KEYS[1], 'changed', changed)
redis.call('ZADD', KEYS[3], seconds * 1e6 + micros, ARGV[1])
if ARGV[6] == '' then
  redis.call('PERSIST', KEYS[1])
  redis.call('PERSIST', KEYS[2])
  redis.call('ZREM', KEYS[4], ARGV[1])
else
  local over = seconds * 1000 + math.floor(micros / 1000) + ARGV[6]
  redis.call('PEXPIREAT', KEYS[1], over)
  redis.call('PEXPIREAT', KEYS[2], over)
  redis.call('ZADD', KEYS[4], over, ARGV[1])
end
"""
    + READ
)
# version, model, state
KEEP = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'model', ARGV[3], 'made', ARGV[2], 'state', ARGV[4])
return 1
"""
ERASE = """
local there = redis.call('EXISTS', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
return there
"""
# Of many users. KEYS: the two indices, then two of each user. ARGV: now in ms, then the users.
PURGE = """
local over = 0
for nth = 2, #ARGV do
  local expires = redis.call('ZSCORE', KEYS[2], ARGV[nth])
  if expires and tonumber(expires) < tonumber(ARGV[1]) then
    redis.call('DEL', KEYS[2 * nth - 1], KEYS[2 * nth])
    redis.call('ZREM', KEYS[1], ARGV[nth])
    redis.call('ZREM', KEYS[2], ARGV[nth])
    over = over + 1
  end
end
return over
"""
