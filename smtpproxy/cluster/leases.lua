-- The leases of one backend: how many connections each replica holds, and who gets a free one.
--
-- One call renews all leases of the calling replica, gives back those that it no longer counts in
-- `held`, and takes up to `wanted` more.  It may be lost, late or repeated: its numbers are absolute,
-- and `number` rises, so an older call changes nothing.  Time is the server's alone.
--
-- KEYS[1]: a hash.  Its field `=` is the state of all: run id of the server, when the recovery began,
-- the time of the last call, and the number of turns.  Each other field is a replica:
-- held, wanted, number of its last call, its time, waiting since (0: does not wait), last turn.
--
-- A replica that was not heard for half a lease may use its share without asking, so it counts with
-- its share at least.  After a whole lease it is lost and counts with its share until another one
-- takes its place: it may be cut off, and serve mail.
local replica = ARGV[1]
local number, held, wanted = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local limit, share, replicas = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local lease, patience, channel = tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10]
local LEAVE = -1      -- wanted: the replica ends
local GRACE = 250     -- ms between the last connection by share in a recovery and the first lease
local WAITS = 1000    -- ms after which a replica that has not asked again no longer waits

local function numbers(text, count) -- nil if no replica has written them
  local found = {}
  for word in string.gmatch(text, '[^ ]+') do
    local number = tonumber(word)
    if not number or not (math.abs(number) < 2 ^ 53) then return nil end
    found[#found + 1] = number
  end
  return #found == count and found or nil
end

local function whole(...) -- without an exponent
  local texts = {}
  for index, each in ipairs({...}) do texts[index] = string.format('%.0f', each) end
  return table.concat(texts, ' ')
end

local function write(name, each)
  redis.call('HSET', KEYS[1], name,
    whole(each.held, each.wanted, each.number, each.at, each.since, each.turn))
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = 'r' .. string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')

local known, state = {}, nil
local fields = redis.call('HGETALL', KEYS[1])
for index = 1, #fields, 2 do
  local name, text = fields[index], fields[index + 1]
  if name == '=' then
    local its_run, rest = string.match(text, '^(r%x+) (.*)$')
    local found = rest and numbers(rest, 3)
    state = found and {run = its_run, begun = found[1], last = found[2], turns = found[3]}
  else
    local found = numbers(text, 6)
    if found then
      known[name] = {held = found[1], wanted = found[2], number = found[3], at = found[4],
                     since = found[5], turn = found[6]}
    else
      redis.call('HDEL', KEYS[1], name)
    end
  end
end

local me = known[replica]
if me and number <= me.number then
  return {0, 0, 0, 0}
end

-- A server that is empty, that was started again with what it had saved, or whose clock has jumped
-- (replicas call every third of a lease) does not know what is held: it asks for a lease first.
if not state then
  state = {turns = 0, last = now}
  for index = 1, replicas do
    known['?' .. index] = {held = 0, wanted = 0, number = 0, at = 0, since = 0, turn = 0}
    write('?' .. index, known['?' .. index])
  end
end
if state.run ~= run or math.abs(now - state.last) > lease / 2 then
  state.run, state.begun = run, now
  for name, each in pairs(known) do
    if each.at > now then
      each.at, each.since = now, 0
      write(name, each)
    end
  end
else
  now = math.max(now, state.last)
end
state.last = now

if wanted == LEAVE then
  known[replica] = nil
  redis.call('HDEL', KEYS[1], replica)
  me = nil
else
  me = me or {since = 0, turn = 0}
  me.held, me.wanted, me.number, me.at = held, wanted, number, now
  known[replica] = me
end

local live, lost = 0, {}
for name, each in pairs(known) do
  if now - each.at > lease then
    lost[#lost + 1] = name
  else
    live = live + 1
  end
end
table.sort(lost, function(one, other)
  if known[one].at ~= known[other].at then return known[one].at < known[other].at end
  return one < other
end)
for index = 1, math.min(#lost, live + #lost - replicas) do
  redis.call('HDEL', KEYS[1], lost[index])
  known[lost[index]] = nil
end

local used, most, waiting = 0, 0, {}
for name, each in pairs(known) do
  local age = now - each.at
  each.name = name
  if age > lease then
    used = used + share
  elseif age > lease / 2 then
    used = used + math.max(each.held, share)
  else
    used = used + each.held
    most = math.max(most, each.held)
  end
  if each.wanted > 0 and age <= WAITS then
    waiting[#waiting + 1] = each
  end
end

local reclaim = 0
if me and me.held == most and used >= limit then
  for _, each in ipairs(waiting) do
    if each.since > 0 and now - each.since > patience and each.held < me.held then
      reclaim = 1
    end
  end
end

-- Each free connection goes to the replica that holds fewest, of those the one whose turn is longest
-- ago.  Only the calling one gets it now; the others are woken to ask.
local given, woken = 0, {}
local recovering = state.begun + lease - now
if recovering + GRACE <= 0 then
  for _ = used + 1, limit do
    local first = nil
    for _, each in ipairs(waiting) do
      if each.wanted > 0 and (not first or each.held < first.held or
          (each.held == first.held and each.turn < first.turn)) then
        first = each
      end
    end
    if not first then break end
    first.held, first.wanted = first.held + 1, first.wanted - 1
    state.turns = state.turns + 1
    first.turn = state.turns
    if first == me then
      given, used = given + 1, used + 1
    else
      woken[first.name] = true
    end
  end
end

if me then
  if me.wanted == 0 then
    me.since = 0
  elseif given > 0 or me.since == 0 then
    me.since = now
  end
  write(replica, me)
end
redis.call('HSET', KEYS[1], '=', run .. ' ' .. whole(state.begun, now, state.turns))
redis.call('PEXPIRE', KEYS[1], lease * 10 + 3600000)
for name in pairs(woken) do
  redis.call('PUBLISH', channel .. name, ARGV[11])
end
return {given, math.max(recovering, 0), used, reclaim}
