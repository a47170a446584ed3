defmodule SQLite do
  @moduledoc """
  A SQL database in a sandbox: SQLite, compiled to WebAssembly, in a supervised process.

      children = [
        {SQLite, name: Notes, module: "tmp/guests/sqlite.wasm", max_memory: 64 * 1024 * 1024}
      ]

      {:ok, []} = SQLite.query(Notes, "create table note (id integer primary key, text)")
      {:ok, []} = SQLite.query(Notes, "insert into note (text) values (?)", ["water the plants"])
      {:ok, [[1, "water the plants"]]} = SQLite.query(Notes, "select * from note")

  It has the memory that `max_memory:` allows and the files below the directory of `dir:`, and
  reaches nothing else. A statement that takes too long is ended, and so is the database then: its
  supervisor starts it afresh. What was committed to a file is still there, what was in memory is
  not. Files are not locked: one process may have a file open at a time.

  `test/guests/fetch` builds `sqlite.wasm`.
  """

  use Beamr.Server

  alias Beamr.Struct

  defmodule Error do
    @moduledoc "What SQLite has against a statement: its (extended) result code and its words."

    defexception [:code, :message]

    @type t :: %__MODULE__{code: integer(), message: String.t()}
  end

  @typedoc "A value of SQL; text and blobs are both read as binaries."
  @type value :: nil | integer() | float() | binary() | {:blob, binary()}

  # What sqlite3_prepare_v2 answers by pointers: the first statement, and the text behind it.
  @prepared Struct.new(statement: :ptr, rest: :ptr)

  @ok 0
  @range 25
  @row 100
  @done 101

  @open_read_write_create 0x02 + 0x04
  # Has SQLite make itself a copy of what is bound.
  @transient -1

  @doc """
  Starts a database. Options: those of `Beamr.Server.start_link/1`, and

    * `:dir` - a directory that the database may use, as `/data`; none unless given;
    * `:path` - the database's file, as `"/data/notes.db"`; in memory unless given.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    {own, opts} = Keyword.split(opts, [:dir, :path])
    dirs = if own[:dir], do: [{own[:dir], "/data", :write}], else: []

    [callback: __MODULE__, arg: own[:path] || ":memory:", wasi: [dirs: dirs]]
    |> Keyword.merge(opts)
    |> Beamr.Server.start_link()
  end

  @doc """
  Runs one statement with the values of its parameters; answers the rows, each a list of values.
  `timeout:` is in milliseconds, 5000 unless given.

  Fails with `SQLite.Error`, or with what ended the guest: a `Beamr.CallError` with the reason
  `:timeout`, a `Beamr.Trap`.
  """
  @spec query(GenServer.server(), String.t(), [value()], timeout: timeout()) ::
          {:ok, [[value()]]} | {:error, Exception.t()}
  def query(database, sql, params \\ [], opts \\ []) do
    with {:ok, [rows]} <- run(database, sql, [params], opts), do: {:ok, rows}
  end

  @doc """
  Runs one statement for each list of parameters, in a transaction: all of them, or none. Fails as
  `query/4` does.
  """
  @spec query_all(GenServer.server(), String.t(), [[value()]], timeout: timeout()) ::
          :ok | {:error, Exception.t()}
  def query_all(database, sql, all, opts \\ []) do
    with {:ok, _rows} <- run(database, sql, {:transaction, all}, opts), do: :ok
  end

  # The server keeps the time itself, call by call.
  defp run(database, sql, all, opts) when is_binary(sql) do
    GenServer.call(database, {:run, sql, all, opts[:timeout] || 5_000}, :infinity)
  end

  ## In the server

  @impl true
  def init(path), do: {:ok, path, {:continue, :open}}

  @impl true
  def handle_continue(:open, path) do
    {:noreply, open(path)}
  rescue
    error -> {:stop, {:shutdown, error}, path}
  end

  @impl true
  def handle_call({:run, sql, all, timeout}, _from, db) do
    Process.put(:deadline, timeout != :infinity && now() + timeout)
    {:reply, {:ok, run_all(db, sql, all)}, db}
  rescue
    error in [Error, Beamr.MemoryError] ->
      {:reply, {:error, error}, db}

    # A call that did not come to its end has left SQLite in the middle of something. There is no
    # going on with this instance.
    error ->
      {:stop, {:shutdown, error}, {:error, error}, db}
  end

  defp open(path) do
    Beamr.IO.with_string!(self(), path, fn path ->
      Beamr.IO.with_alloc!(self(), 4, fn pointer ->
        code = call("sqlite3_open_v2", [path, pointer, @open_read_write_create, 0])
        db = Beamr.IO.read_u32!(self(), pointer)
        check(code, db)
        db
      end)
    end)
  end

  defp run_all(db, sql, {:transaction, all}) do
    run_all(db, "begin", [[]])

    try do
      run_all(db, sql, all)
      run_all(db, "commit", [[]])
    rescue
      error in [Error, Beamr.MemoryError] ->
        run_all(db, "rollback", [[]])
        reraise error, __STACKTRACE__
    end
  end

  defp run_all(db, sql, all) do
    case prepare(db, sql) do
      # A comment, or nothing.
      0 ->
        Enum.map(all, fn _params -> [] end)

      statement ->
        try do
          wanted = call("sqlite3_bind_parameter_count", [statement])
          Enum.map(all, &rows(db, statement, wanted, &1))
        rescue
          error in [Error, Beamr.MemoryError] ->
            call("sqlite3_finalize", [statement])
            reraise error, __STACKTRACE__
        else
          rows ->
            call("sqlite3_finalize", [statement])
            rows
        end
    end
  end

  defp prepare(db, sql) do
    Beamr.IO.with_string!(self(), sql, fn text ->
      Beamr.IO.with_alloc!(self(), Struct.size(@prepared), fn pointer ->
        check(call("sqlite3_prepare_v2", [db, text, -1, pointer, pointer + 4]), db)
        %{statement: statement, rest: rest} = Struct.read!(self(), pointer, @prepared)

        if self() |> Beamr.IO.read_string!(rest) |> String.trim() != "" do
          call("sqlite3_finalize", [statement])
          raise Error, code: 1, message: "more than one statement"
        end

        statement
      end)
    end)
  end

  defp rows(_db, _statement, wanted, params) when length(params) != wanted do
    raise Error, code: @range, message: "#{wanted} parameters wanted, given: #{length(params)}"
  end

  defp rows(db, statement, _wanted, params) do
    params
    |> Enum.with_index(1)
    |> Enum.each(fn {value, n} -> check(bind(statement, n, value), db) end)

    rows = step(db, statement, [])
    call("sqlite3_reset", [statement])
    rows
  end

  defp bind(statement, n, nil), do: call("sqlite3_bind_null", [statement, n])

  defp bind(statement, n, value) when is_integer(value),
    do: call("sqlite3_bind_int64", [statement, n, value])

  defp bind(statement, n, value) when is_float(value),
    do: call("sqlite3_bind_double", [statement, n, value])

  defp bind(statement, n, {:blob, bytes}), do: bind(statement, n, "sqlite3_bind_blob", bytes)
  defp bind(statement, n, text), do: bind(statement, n, "sqlite3_bind_text", text)

  defp bind(statement, n, function, bytes) do
    Beamr.IO.with_bytes!(self(), bytes, fn pointer, length ->
      call(function, [statement, n, pointer, length, @transient])
    end)
  end

  defp step(db, statement, rows) do
    case call("sqlite3_step", [statement]) do
      @row ->
        count = call("sqlite3_column_count", [statement])
        row = for n <- 0..(count - 1)//1, do: column(statement, n)
        step(db, statement, [row | rows])

      @done ->
        Enum.reverse(rows)

      code ->
        check(code, db)
    end
  end

  defp column(statement, n) do
    case call("sqlite3_column_type", [statement, n]) do
      1 -> call("sqlite3_column_int64", [statement, n])
      2 -> call("sqlite3_column_double", [statement, n])
      3 -> bytes(statement, n, "sqlite3_column_text")
      4 -> bytes(statement, n, "sqlite3_column_blob")
      5 -> nil
    end
  end

  # SQLite wants to be asked for the text first, and for its length then.
  defp bytes(statement, n, function) do
    pointer = call(function, [statement, n], unsigned: true)
    Beamr.IO.read!(self(), pointer, call("sqlite3_column_bytes", [statement, n]))
  end

  defp check(@ok, _db), do: :ok

  defp check(_code, db) do
    code = call("sqlite3_extended_errcode", [db])
    message = Beamr.IO.read_string!(self(), call("sqlite3_errmsg", [db], unsigned: true))
    raise Error, code: code, message: message
  end

  defp call(function, args, opts \\ []) do
    case Beamr.call!(self(), function, args, [{:timeout, time_left()} | opts]) do
      [result] -> result
      [] -> :ok
    end
  end

  defp time_left do
    case Process.get(:deadline) do
      deadline when is_integer(deadline) -> max(deadline - now(), 0)
      _none -> :infinity
    end
  end

  defp now, do: System.monotonic_time(:millisecond)
end
