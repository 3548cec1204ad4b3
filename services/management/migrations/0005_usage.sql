-- How often an account called an operation in a month, by the month's first day in UTC.
CREATE TABLE management.usage (
    month date NOT NULL,
    account text NOT NULL,
    operation text NOT NULL,
    calls bigint NOT NULL,
    PRIMARY KEY (account, month, operation)
);
CREATE INDEX usage_month ON management.usage (month);

-- The last batch of counts that each process added, so that one whose answer was lost on the way is not added twice.
CREATE TABLE management.usage_batch (
    process uuid PRIMARY KEY,
    number bigint NOT NULL,
    added_at timestamptz NOT NULL DEFAULT now()
);
