-- The ledger: events in partitions by month, and their sums by hour and by day.
--
-- An event belongs to the time in its id (a UUIDv7, made when the request came): id, partition, hour
-- and day cannot disagree.

-- The time in an event's id, to the millisecond; at the end of 9999 for what is no time.
CREATE FUNCTION event_time(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_timestamp(least(
            253402300799999, ('x' || left(id::text, 8) || substr(id::text, 10, 4))::bit(48)::bigint
        )::double precision / 1000)
$$;

-- The least UUIDv7 of a millisecond: an event is of the time from a until b when
-- event_id >= event_floor(a) AND event_id < event_floor(b), and only the partitions of that time
-- are read.
CREATE FUNCTION event_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (lpad(to_hex(greatest(
            0, floor(extract(epoch FROM at AT TIME ZONE 'UTC') * 1000)::bigint
        )), 12, '0') || '70008000000000000000')::uuid
$$;

-- One number for each transaction that brings events, taken while it holds its lock on
-- usage_events: whoever takes LOCK TABLE usage_events IN SHARE MODE and then reads the sequence
-- knows that all batches up to its last_value are visible, and that what comes later has a higher
-- number. The first is 1; 0 has what was there before.
CREATE SEQUENCE usage_batches MINVALUE 0 START 0;
SELECT nextval('usage_batches');

ALTER TABLE usage_events RENAME TO usage_events_before;
ALTER INDEX usage_events_pkey RENAME TO usage_events_before_pkey;

CREATE TABLE usage_events (
    event_id           uuid NOT NULL,
    -- Where the event comes from: node, spool, and its number there. The numbers of a spool have no
    -- hole: a hole would prove a loss.
    node               text,
    boot               uuid,
    seq                bigint,
    batch              bigint NOT NULL DEFAULT nextval('usage_batches'),
    request_id         text NOT NULL,
    account            text NOT NULL,
    key_id             text NOT NULL,
    admitted_at        timestamptz NOT NULL,
    first_byte_at      timestamptz,
    ended_at           timestamptz,
    model_asked        text,
    model_served       text,
    upstream           text,
    front              text,
    endpoint           text,
    stream             boolean NOT NULL,
    outcome            text NOT NULL CHECK
        (outcome IN ('ok', 'client_closed', 'upstream_cut', 'error', 'gateway_died')),
    status             integer,
    finish_reason      text,
    error_kind         text,
    attempts           integer,
    -- cached and cache_write are part of prompt, reasoning is part of completion.
    prompt_tokens      bigint CHECK (prompt_tokens BETWEEN 0 AND 1099511627775),
    cached_tokens      bigint CHECK (cached_tokens BETWEEN 0 AND 1099511627775),
    cache_write_tokens bigint NOT NULL DEFAULT 0
        CHECK (cache_write_tokens BETWEEN 0 AND 1099511627775),
    completion_tokens  bigint CHECK (completion_tokens BETWEEN 0 AND 1099511627775),
    reasoning_tokens   bigint CHECK (reasoning_tokens BETWEEN 0 AND 1099511627775),
    source             text CHECK (source IN ('reported', 'counted', 'estimated')),
    duration_ms        double precision,
    ttft_ms            double precision,
    tokens_per_second  double precision,
    -- The price by which the event was rated, null without one; what it cost, exactly.
    price_id           bigint,
    cost               numeric(28, 12) CHECK (cost >= 0),
    tags               jsonb CHECK (jsonb_typeof(tags) = 'object'),
    -- Keeps an event from being written twice, and finds those of a time. Ids ascend, so that only
    -- the index's last pages are written.
    CONSTRAINT usage_events_pkey PRIMARY KEY (event_id)
) PARTITION BY RANGE (event_id);

-- One account's events of a time: what an invoice is drilled down to, rated anew, exported.
CREATE INDEX usage_events_account ON usage_events (account, event_id);
-- What came after a watermark. Rows lie in the order of their batches: a few pages for millions.
CREATE INDEX usage_events_batch ON usage_events USING brin (batch) WITH (pages_per_range = 32);

-- A net for events of months without a partition.
CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT;

-- Makes the partition of a month (UTC) and moves there what of it lies in the default partition.
-- Whether there was none yet. Locks in the order of those who write and read events.
CREATE FUNCTION usage_partition(month date) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    first timestamp := date_trunc('month', month::timestamp);
    part text := 'usage_events_' || to_char(first, 'YYYY_MM');
    lower uuid := event_floor(first AT TIME ZONE 'UTC');
    upper uuid := event_floor((first + interval '1 month') AT TIME ZONE 'UTC');
BEGIN
    IF to_regclass(part) IS NOT NULL THEN
        RETURN false;
    END IF;
    LOCK TABLE ONLY usage_events IN SHARE UPDATE EXCLUSIVE MODE;
    -- Another may have made it meanwhile.
    IF to_regclass(part) IS NOT NULL THEN
        RETURN false;
    END IF;
    LOCK TABLE usage_events_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE %I (LIKE usage_events INCLUDING ALL)', part);
    EXECUTE format(
        'WITH moved AS (DELETE FROM usage_events_default'
        ' WHERE event_id >= $1 AND event_id < $2 RETURNING *)'
        ' INSERT INTO %I SELECT * FROM moved ORDER BY event_id', part
    ) USING lower, upper;
    EXECUTE format(
        'ALTER TABLE usage_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
        part, lower, upper
    );
    RETURN true;
END $$;

-- The months that have a partition, in order.
CREATE VIEW usage_partitions AS
    SELECT to_date(substr(relname, 14), 'YYYY_MM') AS month, relname::text AS name
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'usage_events'::regclass AND relname <> 'usage_events_default'
    ORDER BY 1;

-- Sums. They change only in the transaction that inserts their events; a recount replaces them.
-- upstream '' and price_id 0: none. errors: outcomes other than ok. estimated: events whose tokens
-- are estimated. The space left in each page keeps updates off the indexes.
CREATE TABLE usage_hourly (
    hour               timestamptz NOT NULL,
    account            text NOT NULL,
    key_id             text NOT NULL,
    model              text NOT NULL,
    upstream           text NOT NULL DEFAULT '',
    price_id           bigint NOT NULL DEFAULT 0,
    requests           bigint NOT NULL DEFAULT 0,
    errors             bigint NOT NULL DEFAULT 0,
    estimated          bigint NOT NULL DEFAULT 0,
    prompt_tokens      bigint NOT NULL DEFAULT 0,
    cached_tokens      bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    completion_tokens  bigint NOT NULL DEFAULT 0,
    reasoning_tokens   bigint NOT NULL DEFAULT 0,
    duration_us        bigint NOT NULL DEFAULT 0,
    cost               numeric(38, 12) NOT NULL DEFAULT 0,
    PRIMARY KEY (hour, account, key_id, model, upstream, price_id)
) WITH (fillfactor = 70);

CREATE INDEX usage_hourly_account ON usage_hourly (account, hour);

CREATE TABLE usage_daily (
    -- UTC.
    day                date NOT NULL,
    account            text NOT NULL,
    key_id             text NOT NULL,
    model              text NOT NULL,
    upstream           text NOT NULL DEFAULT '',
    price_id           bigint NOT NULL DEFAULT 0,
    requests           bigint NOT NULL DEFAULT 0,
    errors             bigint NOT NULL DEFAULT 0,
    estimated          bigint NOT NULL DEFAULT 0,
    prompt_tokens      bigint NOT NULL DEFAULT 0,
    cached_tokens      bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    completion_tokens  bigint NOT NULL DEFAULT 0,
    reasoning_tokens   bigint NOT NULL DEFAULT 0,
    duration_us        bigint NOT NULL DEFAULT 0,
    cost               numeric(38, 12) NOT NULL DEFAULT 0,
    PRIMARY KEY (day, account, key_id, model, upstream, price_id)
) WITH (fillfactor = 70);

-- Budgets are of accounts, keys and models.
CREATE INDEX usage_daily_account ON usage_daily (account, day);
CREATE INDEX usage_daily_key ON usage_daily (key_id, day);
CREATE INDEX usage_daily_model ON usage_daily (model, day);

CREATE VIEW usage_monthly AS
    SELECT date_trunc('month', day::timestamp)::date AS month,
        account, key_id, model, upstream, price_id,
        sum(requests)::bigint AS requests,
        sum(errors)::bigint AS errors,
        sum(estimated)::bigint AS estimated,
        sum(prompt_tokens)::bigint AS prompt_tokens,
        sum(cached_tokens)::bigint AS cached_tokens,
        sum(cache_write_tokens)::bigint AS cache_write_tokens,
        sum(completion_tokens)::bigint AS completion_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens,
        sum(duration_us)::bigint AS duration_us,
        sum(cost)::numeric(38, 12) AS cost
    FROM usage_daily
    GROUP BY 1, 2, 3, 4, 5, 6;

-- How far each spool has been shipped: events of it that are in usage_events or usage_rejected.
CREATE TABLE spools (
    boot       uuid PRIMARY KEY,
    node       text NOT NULL,
    shipped    bigint NOT NULL CHECK (shipped >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- The last runs of what keeps the ledger. failures: in a row. detail: what the last one did.
CREATE TABLE jobs (
    name         text PRIMARY KEY,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz NOT NULL,
    succeeded_at timestamptz,
    failures     integer NOT NULL DEFAULT 0,
    error        text,
    detail       jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE ledger_state (
    one           boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- What retention has taken away ends here; of days before, the sums are all there is.
    events_from   date,
    hourly_from   date,
    -- Of days before recounted_day, the events of batches up to recounted have been counted again.
    recounted     bigint NOT NULL DEFAULT 0,
    recounted_day date,
    -- Sums that a recount had to replace, ever.
    differences   bigint NOT NULL DEFAULT 0
);
INSERT INTO ledger_state DEFAULT VALUES;

-- The events that are there already: batch 0.
SELECT usage_partition(month::date)
    FROM generate_series(
        (SELECT date_trunc('month', coalesce(min(admitted_at), now()) AT TIME ZONE 'UTC')
            FROM usage_events_before),
        date_trunc('month', now() AT TIME ZONE 'UTC') + interval '3 months',
        interval '1 month'
    ) month;

INSERT INTO usage_events (
        event_id, batch, request_id, account, key_id, admitted_at, first_byte_at, ended_at,
        model_asked, model_served, upstream, front, endpoint, stream, outcome, status,
        finish_reason, error_kind, attempts, prompt_tokens, cached_tokens, completion_tokens,
        reasoning_tokens, source, duration_ms, ttft_ms, tokens_per_second, cost)
    SELECT event_id, 0, request_id, account, key_id, admitted_at, first_byte_at, ended_at,
        model_asked, model_served, upstream, front, endpoint, stream, outcome, status,
        finish_reason, error_kind, attempts, prompt_tokens, cached_tokens, completion_tokens,
        reasoning_tokens, source, duration_ms, ttft_ms, tokens_per_second, cost
    FROM usage_events_before ORDER BY event_id;

INSERT INTO usage_hourly (
        hour, account, key_id, model, upstream, requests, errors, estimated, prompt_tokens,
        cached_tokens, completion_tokens, reasoning_tokens, duration_us, cost)
    SELECT date_trunc('hour', event_time(event_id), 'UTC'), account, key_id,
        coalesce(model_served, model_asked, ''), coalesce(upstream, ''),
        count(*),
        count(*) FILTER (WHERE outcome <> 'ok'),
        count(*) FILTER (WHERE source = 'estimated'),
        coalesce(sum(prompt_tokens), 0),
        coalesce(sum(cached_tokens), 0),
        coalesce(sum(completion_tokens), 0),
        coalesce(sum(reasoning_tokens), 0),
        coalesce(sum(round(duration_ms * 1000)::bigint), 0),
        coalesce(sum(cost), 0)
    FROM usage_events GROUP BY 1, 2, 3, 4, 5;

INSERT INTO usage_daily (
        day, account, key_id, model, upstream, requests, errors, estimated, prompt_tokens,
        cached_tokens, completion_tokens, reasoning_tokens, duration_us, cost)
    SELECT (hour AT TIME ZONE 'UTC')::date, account, key_id, model, upstream, sum(requests),
        sum(errors), sum(estimated), sum(prompt_tokens), sum(cached_tokens),
        sum(completion_tokens), sum(reasoning_tokens), sum(duration_us), sum(cost)
    FROM usage_hourly GROUP BY 1, 2, 3, 4, 5;

DROP TABLE usage_events_before, spend;
