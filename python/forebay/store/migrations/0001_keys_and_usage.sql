CREATE TABLE accounts (
    id         text PRIMARY KEY CHECK (id <> ''),
    name       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE SEQUENCE api_keys_version;

CREATE TABLE api_keys (
    id                  char(12) PRIMARY KEY,
    kind                text NOT NULL CHECK (kind IN ('inference', 'admin')),
    account             text NOT NULL REFERENCES accounts (id),
    name                text NOT NULL,
    -- SHA-256 of the whole key as its holder sends it.
    digest              bytea NOT NULL CHECK (length(digest) = 32),
    last4               char(4) NOT NULL,
    -- The secret before the last rotation, good until previous_expires_at.
    previous_digest     bytea CHECK (length(previous_digest) = 32),
    previous_expires_at timestamptz,
    -- NULL: every model.
    models              text[],
    rpm                 bigint CHECK (rpm > 0),
    rpm_burst           bigint CHECK (rpm_burst > 0),
    tpm                 bigint CHECK (tpm > 0),
    tpm_burst           bigint CHECK (tpm_burst > 0),
    concurrency         bigint CHECK (concurrency > 0),
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    expires_at          timestamptz,
    rotated_at          timestamptz,
    revoked_at          timestamptz,
    version             bigint NOT NULL DEFAULT 0,
    CHECK ((previous_digest IS NULL) = (previous_expires_at IS NULL)),
    CHECK ((rpm IS NULL) = (rpm_burst IS NULL)),
    CHECK ((tpm IS NULL) = (tpm_burst IS NULL))
);

CREATE UNIQUE INDEX api_keys_by_version ON api_keys (version);
CREATE INDEX api_keys_by_account ON api_keys (account);

-- Watchers ask for versions above the last one they saw. A version must therefore never become
-- visible after a higher one, so writers take turns: the lock is held until commit.
CREATE FUNCTION api_keys_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7166410, 2);
    NEW.version := nextval('api_keys_version');
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TRIGGER api_keys_stamp BEFORE INSERT OR UPDATE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION api_keys_stamp();

CREATE FUNCTION api_keys_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('forebay_keys', NEW.id);
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_notify AFTER INSERT OR UPDATE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION api_keys_notify();

-- A row that vanishes has no version to poll for, so its key would stay valid in the gateways.
CREATE FUNCTION api_keys_keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.revoked_at IS NULL THEN
        RAISE EXCEPTION 'revoke API key % before deleting it', OLD.id;
    END IF;
    RETURN OLD;
END $$;

CREATE TRIGGER api_keys_keep BEFORE DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION api_keys_keep();

CREATE TABLE usage_events (
    -- UUIDv7 made at admission: the idempotency key.
    event_id          uuid PRIMARY KEY,
    request_id        text NOT NULL,
    account           text NOT NULL,
    key_id            text NOT NULL,
    admitted_at       timestamptz NOT NULL,
    first_byte_at     timestamptz,
    ended_at          timestamptz,
    model_asked       text,
    model_served      text,
    upstream          text,
    front             text,
    endpoint          text,
    stream            boolean NOT NULL,
    outcome           text NOT NULL CHECK
        (outcome IN ('ok', 'client_closed', 'upstream_cut', 'error', 'gateway_died')),
    status            integer,
    finish_reason     text,
    error_kind        text,
    attempts          integer,
    prompt_tokens     bigint CHECK (prompt_tokens BETWEEN 0 AND 1099511627775),
    cached_tokens     bigint CHECK (cached_tokens BETWEEN 0 AND 1099511627775),
    completion_tokens bigint CHECK (completion_tokens BETWEEN 0 AND 1099511627775),
    reasoning_tokens  bigint CHECK (reasoning_tokens BETWEEN 0 AND 1099511627775),
    source            text CHECK (source IN ('reported', 'counted', 'estimated')),
    duration_ms       double precision,
    ttft_ms           double precision,
    tokens_per_second double precision
);

CREATE INDEX usage_events_by_key ON usage_events (key_id, admitted_at);
CREATE INDEX usage_events_by_account ON usage_events (account, admitted_at);
CREATE INDEX usage_events_by_time ON usage_events USING brin (admitted_at);

-- Events the table above refuses, kept with the reason.
CREATE TABLE usage_rejected (
    fingerprint bytea PRIMARY KEY,
    event       jsonb NOT NULL,
    reason      text NOT NULL,
    rejected_at timestamptz NOT NULL DEFAULT now()
);
