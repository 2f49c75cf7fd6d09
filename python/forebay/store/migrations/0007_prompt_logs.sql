-- What of an account's requests is kept besides usage; a key's own settings go before its account's.
ALTER TABLE accounts
    ADD COLUMN log_level  text NOT NULL DEFAULT 'off'
        CHECK (log_level IN ('off', 'metadata', 'full')),
    -- The part of the requests that is logged.
    ADD COLUMN log_sample numeric(7, 6) NOT NULL DEFAULT 1 CHECK (log_sample BETWEEN 0 AND 1);

ALTER TABLE api_keys
    ADD COLUMN log_level  text CHECK (log_level IN ('off', 'metadata', 'full')),
    ADD COLUMN log_sample numeric(7, 6) CHECK (log_sample BETWEEN 0 AND 1);

CREATE INDEX accounts_with_logs ON accounts (id) WHERE log_level <> 'off';

-- Gateways hear of an account's settings as they do of its weight.
DROP TRIGGER accounts_changed ON accounts;
CREATE TRIGGER accounts_changed AFTER UPDATE OF weight, log_level, log_sample ON accounts
    FOR EACH ROW EXECUTE FUNCTION limits_changed();
DROP TRIGGER accounts_added ON accounts;
CREATE TRIGGER accounts_added AFTER INSERT ON accounts
    FOR EACH ROW WHEN (NEW.weight <> 1 OR NEW.log_level <> 'off')
    EXECUTE FUNCTION limits_changed();

-- A day (UTC) is a partition, made ahead and dropped as a whole; the id, a UUIDv7 made at
-- admission, has the time. What falls on no day's partition waits in the default one.
CREATE TABLE prompt_logs (
    event_id          uuid PRIMARY KEY,
    request_id        text NOT NULL,
    account           text NOT NULL,
    key_id            text NOT NULL,
    model             text,
    at                timestamptz NOT NULL,
    level             text NOT NULL CHECK (level IN ('metadata', 'full')),
    status            integer,
    -- Of the whole, whatever was kept of it.
    request_bytes     integer,
    answer_bytes      integer,
    request_truncated boolean,
    answer_truncated  boolean,
    -- Places at which something was blotted out.
    redactions        integer,
    -- The key that opens request and answer, each 12 bytes of nonce, AES-256-GCM's ciphertext, and
    -- its tag of 16; bound to event_id and 0 for the request, 1 for the answer.
    enc_key           text,
    request           bytea CHECK (length(request) >= 28),
    answer            bytea CHECK (length(answer) >= 28),
    CHECK (enc_key IS NOT NULL OR (request IS NULL AND answer IS NULL))
) PARTITION BY RANGE (event_id);

CREATE TABLE prompt_logs_default PARTITION OF prompt_logs DEFAULT;

CREATE INDEX prompt_logs_by_account ON prompt_logs (account, event_id);
CREATE INDEX prompt_logs_by_key ON prompt_logs (key_id, event_id);
CREATE INDEX prompt_logs_by_request ON prompt_logs (request_id);
