import "./style/tokens.css";
import "./style/base.css";
import "./style/parts.css";
import "./style/pages.css";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app";
import { RouterProvider } from "./lib/router";
import { ErrorBoundary } from "./ui/error";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <ErrorBoundary what="Carrel">
      <RouterProvider>
        <App />
      </RouterProvider>
    </ErrorBoundary>
  </StrictMode>,
);
