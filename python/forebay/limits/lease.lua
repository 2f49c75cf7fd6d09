-- Lends of shared limits. One call serves any number of limits of one hash slot.
--
-- KEYS: one per limit. ARGV: the participant, then 11 arguments per key, the first its kind:
--   r  units period_ns burst owed returned want need unit known away_ms
--   h  capacity kept_ms seq part settled floor want need unit known
--   m  life_ms leaving
-- Replies four integers per key: lent, left, retry_ms, stale.
--
-- Runs on Redis >= 6.2 and Valkey. Times are the server's, in microseconds; a clock that steps
-- back refills nothing. The same in Rust, for tests: rust/core/tests/support/store.rs.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local me = 'p:' .. ARGV[1]
local PART_LIFE = 5000000 -- a participant's part comes back after so long without a word
local REAP = 1000000 -- parts are counted anew so often
local GRACE = 2000000 -- a lost holding lends nothing until every participant has told its part
local TOLD = 3600000000 -- which settlements were told is known for so long
local PERMIT_RETRY = 100 -- no clock tells when a permit comes back

local function text(number)
  return string.format('%.17g', number)
end

-- What to lend of what is left: what requests wait for if it is there, else whole requests of it;
-- ahead of requests a quarter of what is left, so that leases are small near the limit.
local function lend(left, want, need, unit)
  local least = math.max(need, math.min(unit, want))
  if want <= 0 then
    return 0, false
  end
  if left >= least then
    return math.floor(math.max(least, math.min(want, left / 4))), false
  end
  if left < unit then
    return 0, true
  end
  return math.min(want, math.floor(left / unit) * unit), true
end

local function rate(key, a)
  local speed = a[1] / (a[2] / 1000)
  local burst = a[3]
  local kept = redis.call('HMGET', key, 'level', 'at', 'born')
  local level, born = burst, now
  if kept[1] then
    born = tonumber(kept[3])
    level = math.min(burst, tonumber(kept[1]) + math.max(0, now - tonumber(kept[2])) * speed)
  elseif a[9] == 1 then
    -- The key was lost, not forgotten: no second burst.
    level = 0
  end
  local owed = a[4]
  if a[10] > 0 and now - born < a[10] * 1000 then
    -- It was made after this participant lost the store, and knows of no time before.
    owed = 0
  end
  level = math.max(-burst, math.min(burst, level + a[5]) - owed)
  local units, short = lend(level, a[6], a[7], a[8])
  level = level - units
  redis.call('HSET', key, 'level', text(level), 'at', text(now), 'born', text(born))
  redis.call('PEXPIRE', key, math.max(1000, math.min(1e12, math.ceil(2 * burst / speed / 1000))))
  local retry = 0
  if short then
    retry = math.max(1, math.ceil((a[8] - level) / speed / 1000))
  end
  return units, math.floor(level), retry, 0
end

-- "part:seq:heard" of one participant.
local function part_of(value)
  local part, seq, heard = string.match(value, '^(%S+):(%S+):(%S+)$')
  return tonumber(part), tonumber(seq), tonumber(heard)
end

-- The parts of those who live, added up. Dead ones are dropped.
local function count_parts(key, kept_ms)
  local all = redis.call('HGETALL', key)
  local lent = 0
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'p:' then
      local part, seq, heard = part_of(all[i + 1])
      local silent = now - heard
      if silent < -REAP then
        -- The clock stepped back.
        redis.call('HSET', key, all[i], text(part) .. ':' .. text(seq) .. ':' .. text(now))
        lent = lent + part
      elseif silent < PART_LIFE then
        lent = lent + part
      elseif silent >= math.max(PART_LIFE, math.min(TOLD, kept_ms * 1000)) then
        redis.call('HDEL', key, all[i])
      elseif part > 0 then
        redis.call('HSET', key, all[i], '0:' .. text(seq) .. ':' .. text(heard))
      end
    end
  end
  return lent
end

local function holding(key, a)
  local capacity, seq, part, settled = a[1], a[3], a[4], a[5]
  local kept = redis.call('HMGET', key, 'spent', 'lent', 'reap', 'hold')
  local spent, lent = tonumber(kept[1] or 0), tonumber(kept[2] or 0)
  local reap, hold = tonumber(kept[3] or 0), tonumber(kept[4] or 0)
  if not kept[1] then
    reap = now + REAP
    if a[10] == 1 then
      hold = now + GRACE
    end
  elseif now >= reap or reap > now + REAP then
    lent = count_parts(key, a[2])
    reap = now + REAP
  end
  if hold > now + GRACE then
    hold = 0
  end
  -- After counting, which may have changed it.
  local mine = redis.call('HGET', key, me)
  if mine then
    local old_part, old_seq = part_of(mine)
    if seq < old_seq then
      return 0, math.floor(capacity - spent - lent), 0, 1
    end
    if seq == old_seq then
      settled = 0
    end
    lent = lent - old_part
  end
  spent = math.max(spent + settled, a[6])
  lent = lent + part
  local left = capacity - spent - lent
  local units, short = 0, a[7] > 0
  if now >= hold then
    units, short = lend(left, a[7], a[8], a[9])
  end
  lent = lent + units
  left = left - units
  redis.call('HSET', key, 'spent', text(spent), 'lent', text(lent), 'reap', text(reap),
    'hold', text(hold), me, text(part + units) .. ':' .. text(seq) .. ':' .. text(now))
  redis.call('PEXPIRE', key, a[2])
  local retry = 0
  if short then
    retry = PERMIT_RETRY
  end
  return units, math.floor(left), retry, 0
end

-- How many participants live, this one included.
local function members(key, a)
  local life = a[1] * 1000
  redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now - life))
  redis.call('ZREMRANGEBYSCORE', key, text(now + life), '+inf')
  local there = redis.call('ZSCORE', key, me)
  if a[2] == 1 then
    redis.call('ZREM', key, me)
  else
    redis.call('ZADD', key, text(now), me)
    redis.call('PEXPIRE', key, a[1] * 2)
  end
  return redis.call('ZCARD', key), 0, 0, there and 0 or 1
end

local KINDS = { r = rate, h = holding, m = members }
local replies = {}
for i = 1, #KEYS do
  local from = 2 + (i - 1) * 11
  local a = {}
  for j = 1, 10 do
    a[j] = tonumber(ARGV[from + j])
  end
  local units, left, retry, stale = KINDS[ARGV[from]](KEYS[i], a)
  local to = #replies
  replies[to + 1], replies[to + 2], replies[to + 3], replies[to + 4] = units, left, retry, stale
end
return replies
