-- More limits on keys. Budgets are USD; a calendar's day and month are UTC's.
ALTER TABLE api_keys
    ADD COLUMN rps           bigint CHECK (rps > 0),
    ADD COLUMN rps_burst     bigint CHECK (rps_burst > 0),
    ADD COLUMN budget        numeric(20, 9) CHECK (budget BETWEEN 0.000000001 AND 10000000),
    ADD COLUMN budget_period text CHECK (budget_period IN ('day', 'month', 'total')),
    -- What holds while the store that the nodes share is away: this node's share, or nothing.
    ADD COLUMN on_store_loss text NOT NULL DEFAULT 'share'
        CHECK (on_store_loss IN ('share', 'deny')),
    ADD COLUMN priority      text NOT NULL DEFAULT 'interactive'
        CHECK (priority IN ('interactive', 'batch')),
    ADD CHECK ((rps IS NULL) = (rps_burst IS NULL)),
    ADD CHECK ((budget IS NULL) = (budget_period IS NULL));

CREATE INDEX api_keys_with_budget ON api_keys (id) WHERE budget IS NOT NULL;
CREATE INDEX api_keys_by_age ON api_keys (created_at, id);

ALTER TABLE accounts
    -- The account's part of what is scarce, beside the others'.
    ADD COLUMN weight     double precision NOT NULL DEFAULT 1
        CHECK (weight BETWEEN 0.001 AND 1000),
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();

CREATE INDEX accounts_with_weight ON accounts (id) WHERE weight <> 1;

-- The limits of what is no key. Who: an account; a model, for all clients together; or a key on
-- one model.
CREATE TABLE limits (
    account       text REFERENCES accounts (id) ON DELETE CASCADE,
    key_id        char(12) REFERENCES api_keys (id) ON DELETE CASCADE,
    model         text CHECK (model <> ''),
    rps           bigint CHECK (rps > 0),
    rps_burst     bigint CHECK (rps_burst > 0),
    rpm           bigint CHECK (rpm > 0),
    rpm_burst     bigint CHECK (rpm_burst > 0),
    tpm           bigint CHECK (tpm > 0),
    tpm_burst     bigint CHECK (tpm_burst > 0),
    concurrency   bigint CHECK (concurrency > 0),
    budget        numeric(20, 9) CHECK (budget BETWEEN 0.000000001 AND 10000000),
    budget_period text CHECK (budget_period IN ('day', 'month', 'total')),
    on_store_loss text NOT NULL DEFAULT 'share' CHECK (on_store_loss IN ('share', 'deny')),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (key_id, account, model),
    CHECK ((account IS NULL) = (model IS NOT NULL) AND (key_id IS NULL OR model IS NOT NULL)),
    CHECK ((rps IS NULL) = (rps_burst IS NULL)),
    CHECK ((rpm IS NULL) = (rpm_burst IS NULL)),
    CHECK ((tpm IS NULL) = (tpm_burst IS NULL)),
    CHECK ((budget IS NULL) = (budget_period IS NULL))
);

-- Watchers take the limits of all accounts and models anew when this has changed. Its row is
-- locked until commit, so that writers take turns and none goes unseen.
CREATE TABLE limits_version (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL
);
INSERT INTO limits_version (version) VALUES (1);

CREATE FUNCTION limits_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE limits_version SET version = version + 1;
    PERFORM pg_notify('forebay_keys', '');
    RETURN NULL;
END $$;

CREATE TRIGGER limits_changed AFTER INSERT OR UPDATE OR DELETE ON limits
    FOR EACH ROW EXECUTE FUNCTION limits_changed();
CREATE TRIGGER accounts_changed AFTER UPDATE OF weight ON accounts
    FOR EACH ROW EXECUTE FUNCTION limits_changed();
CREATE TRIGGER accounts_added AFTER INSERT ON accounts
    FOR EACH ROW WHEN (NEW.weight <> 1) EXECUTE FUNCTION limits_changed();

-- A key's limits on single models travel with the key: its version tells of them.
CREATE FUNCTION limits_touch_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE api_keys SET updated_at = now()
        WHERE id = CASE WHEN TG_OP = 'DELETE' THEN OLD.key_id ELSE NEW.key_id END;
    RETURN NULL;
END $$;

CREATE TRIGGER limits_touch_key AFTER INSERT OR UPDATE OR DELETE ON limits
    FOR EACH ROW EXECUTE FUNCTION limits_touch_key();

-- USD; null where the model had no price.
ALTER TABLE usage_events ADD COLUMN cost numeric(20, 9) CHECK (cost >= 0);

-- What was spent, USD: the sum of the events' costs, changed only where they are inserted.
CREATE TABLE spend (
    -- UTC, of admission.
    day     date NOT NULL,
    account text NOT NULL,
    key_id  text NOT NULL,
    model   text NOT NULL,
    cost    numeric NOT NULL,
    PRIMARY KEY (day, account, key_id, model)
);

CREATE INDEX spend_by_account ON spend (account, day);
CREATE INDEX spend_by_key ON spend (key_id, day);
CREATE INDEX spend_by_model ON spend (model, day);
