-- Gateways of the version before the ledger add to `spend` in the statement that writes their events,
-- and read their budgets from it. It stays until all are replaced: nobody else writes or reads it, and
-- the next release drops it. Its sums up to now are those of the ledger.
--
-- Their events are rows of usage_events like all others, with batches by the column's default; their
-- sums come with the next recount.
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

INSERT INTO spend (day, account, key_id, model, cost)
    SELECT day, account, key_id, model, sum(cost) FROM usage_daily
    GROUP BY 1, 2, 3, 4 HAVING sum(cost) > 0;
